// Where threads meet: lanes of a warp, threads of a block, asynchronous copies, mail between blocks.
#include "machine.h"

#include <algorithm>
#include <cstring>

namespace emulated {

// How often a thread receives again, with no news and having met nobody, before it waits: a kernel may well read a place
// twice, but not as often as this.
constexpr unsigned PATIENCE = 32;

void meet(const char* what, bool orders, unsigned mask, void* record, void (*combine)(void**, unsigned)) {
    Thread* me = current();
    auto& threads = me->home->threads;
    unsigned lane = me->index % 32, first = me->index - lane, size = (unsigned)threads.size() - first;
    me->site = SITE;
    if (!(mask >> lane & 1)) fail("%s by lane %u, which is not in its mask %08x", what, lane, mask);
    if (size < 32 && mask >> size) fail("%s with mask %08x, but the warp has %u lanes", what, mask, size);
    me->mask = mask, me->record = record, me->combine = combine;
    void* records[32] = {};
    Thread* met[32];
    size_t count = 0;
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread* other = threads[first + i];
        if (other != me && (!other->record || other->mask != mask)) return wait(what, SITE);
        records[i] = other->record;
        met[count++] = other;
    }
    for (size_t i = 0; i < count; i++)
        if (met[i]->combine != combine)
            fail("%s, but lane %u waits at another operation (%s)", what, met[i]->index % 32, met[i]->waits);
    combine(records, mask);
    if (orders) order::meet(met, count);
    happened();
    for (size_t i = 0; i < count; i++) {
        met[i]->record = nullptr;
        if (met[i] != me) wake(met[i]);
    }
    if (machine->launch->seed) wake(me), leave();
}

static void sync(int id, unsigned threads, const char* what, const Frame* site) {
    Thread* me = current();
    Named& barrier = me->home->named[id];
    me->site = site;
    if (!barrier.waiting.empty() && barrier.expected != threads)
        fail("barrier %d for %u threads, but others wait there for %u threads", id, threads, barrier.expected);
    barrier.expected = threads;
    barrier.waiting.push_back(me);
    unsigned needed = threads == me->home->threads.size() ? me->home->live : threads;
    if (barrier.waiting.size() < needed) return wait(what, site, (unsigned)id, threads);
    order::meet(barrier.waiting.data(), barrier.waiting.size());
    if (!machine->launch->seed) barrier.waiting.pop_back();  // this thread need not leave
    wake(barrier.waiting);
    if (machine->launch->seed) leave();
}
void sync_block() { sync(0, (unsigned)current()->home->threads.size(), "__syncthreads", SITE); }
void sync_named(int id, int threads) {
    current()->site = SITE;
    if (id < 0 || id >= NAMED) fail("block_sync of barrier %d: a block has barriers 0 to %d", id, NAMED - 1);
    if (threads <= 0 || threads % 32) fail("block_sync for %d threads, which are not whole warps", threads);
    sync(id, (unsigned)threads, "block_sync of barrier %u for %u threads", SITE);
}

void begin_later(void (*done)(const void* record), const void* record, size_t bytes) {
    current()->begun.push_back({done, std::vector<char>((const char*)record, (const char*)record + bytes)});
}
void commit_begun() { current()->committed = current()->begun.size(); }
void finish_committed() {
    Thread* me = current();
    for (size_t i = 0; i < me->committed; i++) {
        alignas(16) char record[256];  // on the thread's own stack, where nobody looks for races
        memcpy(record, me->begun[i].record.data(), me->begun[i].record.size());
        me->begun[i].done(record);
    }
    me->begun.erase(me->begun.begin(), me->begun.begin() + me->committed);
    me->committed = 0;
}

void* shared_variable(const void* key, size_t bytes) {
    std::vector<char>& place = current()->home->variables[key];
    if (place.empty()) {
        place.assign(bytes + 128, (char)UNWRITTEN);
        order::forget(place.data(), place.size());
    }
    return (void*)(((uintptr_t)place.data() + 127) / 128 * 128);
}

static unsigned long long mark(const void* barrier) { return 0xba771e00ull << 32 | (uint32_t)(uintptr_t)barrier; }
static Barrier& barrier_at(unsigned long long* barrier, const char* doing, const Frame* site) {
    Thread* me = current();
    me->site = site;
    auto found = me->home->barriers.find(barrier);
    if (found == me->home->barriers.end()) fail("%s on a barrier that was not initialised", doing);
    if (*barrier != mark(barrier)) fail("%s on a barrier that was overwritten", doing);
    return found->second;
}
void flip_if_complete(const Block& home, Barrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1, barrier.pending = barrier.expected;
    order::complete(home, barrier);
    wake(barrier.waiting);
}

void barrier_init(unsigned long long* barrier, unsigned arrivals) {
    Thread* me = current();
    me->site = SITE;
    if ((uintptr_t)barrier % 8) fail("barrier_init off the alignment of 8 bytes");
    if ((char*)barrier < me->home->shared || (char*)(barrier + 1) > me->home->shared + me->home->shared_bytes)
        fail("barrier_init outside the dynamic shared memory");
    if (arrivals == 0) fail("barrier_init for no arrivals");
    if (me->home->barriers.count(barrier)) fail("barrier_init of a barrier that is one already");
    *barrier = mark(barrier);
    Barrier& made = me->home->barriers[barrier] = Barrier();
    made.expected = made.pending = arrivals;
    order::start_barrier(*me->home, made);
}
void barrier_arrive(unsigned long long* at, unsigned bytes) {
    Barrier& barrier = barrier_at(at, "barrier_arrive", SITE);
    if (barrier.pending == 0) fail("more arrivals at a barrier than it was initialised for (%u)", barrier.expected);
    order::arrive(barrier);
    barrier.bytes += bytes;
    barrier.pending--;
    flip_if_complete(*current()->home, barrier);
    if (barrier.pending == 0 && barrier.bytes < 0) fail("more bytes arrived at a barrier than were announced");
}
void barrier_wait(unsigned long long* at, unsigned parity) {
    Barrier& barrier = barrier_at(at, "barrier_wait", SITE);
    while (barrier.phase == (parity & 1)) {
        barrier.waiting.push_back(current());
        wait("barrier_wait for parity %u", SITE, parity);
    }
    order::acquire(barrier.done);
}
void bulk_copy(void* shared, const void* global, unsigned bytes, unsigned long long* at) {
    Barrier& barrier = barrier_at(at, "bulk_copy", SITE);
    Block* home = current()->home;
    char* to = (char*)shared;
    if (bytes == 0 || bytes % 16) fail("bulk_copy of %u bytes, not a multiple of 16", bytes);
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) fail("bulk_copy off the alignment of 16 bytes");
    if (to < home->shared || to + bytes > home->shared + home->shared_bytes)
        fail("bulk_copy to bytes %td to %td of %zu of shared memory", to - home->shared,
             to - home->shared + (ptrdiff_t)bytes, home->shared_bytes);
    for (unsigned i = 0; i < bytes; i += 16) (void)*((volatile const char*)global + i);
    order::copy(shared, global, bytes, barrier, SITE);
    memset(shared, UNWRITTEN, bytes);
    home->copies++;
    machine->copies.push_back({home, shared, global, bytes, at});
}

static void arrive(const AsyncCopy& copy) {
    memcpy(copy.to, copy.from, copy.valid);
    memset((char*)copy.to + copy.valid, 0, copy.bytes - copy.valid);
}
void async_copy(void* shared, const void* global, unsigned bytes, unsigned valid) {
    Thread* me = current();
    char* to = (char*)shared;
    if (bytes != 4 && bytes != 8 && bytes != 16) fail("an asynchronous copy of %u bytes", bytes);
    if ((uintptr_t)shared % bytes || (uintptr_t)global % bytes) fail("an asynchronous copy off its alignment");
    if (to < me->home->shared || to + bytes > me->home->shared + me->home->shared_bytes)
        fail("an asynchronous copy to byte %td of %zu of shared memory", to - me->home->shared, me->home->shared_bytes);
    if (valid) order::touch(global, valid, false, SITE), (void)*(volatile const char*)global;
    order::touch(shared, bytes, true, SITE);
    memset(shared, UNWRITTEN, bytes);
    AsyncCopy copy = {shared, global, bytes, valid};
    if (machine->launch->seed && roll(2)) arrive(copy);
    else me->asked.push_back(copy);
}
void async_commit() {
    current()->groups.push_back(std::move(current()->asked));
    current()->asked.clear();
}
void async_wait(unsigned open) {
    auto& groups = current()->groups;
    for (; groups.size() > open; groups.erase(groups.begin()))
        for (const AsyncCopy& copy : groups.front()) {
            order::touch(copy.to, copy.bytes, true, SITE);
            arrive(copy);
        }
}

// Launches run one after the other, but only what follows this is known to.

// Two letters to the same place arrive in order.
void deliver(size_t which) {
    auto& letters = machine->letters;
    for (size_t i = 0; i < which; i++)
        if (letters[i].place == letters[which].place) which = i;
    memcpy(letters[which].place, &letters[which].value, letters[which].bytes);
    letters.erase(letters.begin() + which);
    machine->news++;
    happened();
}
void send(void* place, unsigned long long value, unsigned bytes) {
    current()->site = SITE;
    if ((uintptr_t)place % bytes) fail("%u bytes sent to a place off their alignment", bytes);
    order::check(place, bytes, true, SITE);
    machine->letters.push_back({current(), (char*)place, value, bytes});
    if (!machine->launch->seed) deliver(machine->letters.size() - 1);
}
void receive(void* to, const void* place, unsigned bytes, unsigned count) {
    Thread* me = current();
    me->site = SITE;
    if ((uintptr_t)place % (bytes * count)) fail("%u bytes received off their alignment", bytes * count);
    order::check(place, bytes * count, false, SITE);
    if (me->informed != machine->news) me->looked.clear(), me->repeated = 0;
    me->informed = machine->news;
    bool again = std::find(me->looked.begin(), me->looked.end(), place) != me->looked.end();
    if (!again) me->looked.push_back(place);
    else if (++me->repeated > PATIENCE) {
        machine->looking.push_back(me);
        wait("looks for what does not arrive", SITE);
    }
    memcpy(to, place, bytes * count);
    for (const Letter& letter : machine->letters) {  // a thread sees its own
        size_t offset = (size_t)(letter.place - (const char*)place);
        if (letter.from == me && offset < bytes * count) memcpy((char*)to + offset, &letter.value, bytes);
    }
}

}  // namespace emulated
