// Races and accesses outside of the launch's memory, found from the reads and writes that the compiler reports.
//
// -fsanitize=thread makes the compiler call a function before every access to memory; here they are. An access races
// with an earlier one of another thread, one of them a write, unless a barrier lies between: each thread has a vector
// clock (the last event of every other thread that it knows to have happened), each two bytes of memory remember their
// last write and some of the reads since: Flanagan and Freund, FastTrack (PLDI 2009), with fewer reads kept.
#include "machine.h"

#include <cstring>
#include <unordered_map>

namespace emulated::order {
namespace {

struct Event {
    unsigned timeline, time;  // time 0: none
    const void* site;
};
struct Cell {
    Event write, reads[3];
};
constexpr unsigned GRAIN = 2, CELLS = PAGE / GRAIN;

char* stacks;
size_t stack_bytes;
std::unordered_map<uintptr_t, Cell*> pages;
Knowledge everything_before;  // at the start of a launch: those before have ended
std::vector<unsigned> times;           // by timeline
std::vector<uint64_t> owners;          // block << 32 | thread; all ones: an mbarrier
constexpr uint64_t A_BARRIER = ~0ull;
bool active() { return machine->launch->ordered; }

__attribute__((optimize("O3"))) void join(Clock& to, const Clock& from) {
    if (to.size() < from.size()) to.resize(from.size());
    unsigned* a = to.data();
    const unsigned* b = from.data();
    for (size_t i = 0, count = from.size(); i < count; i++) a[i] = a[i] < b[i] ? b[i] : a[i];
}
// A clock has the timelines of one block, since nothing orders blocks of a launch: mail and atomic operations are
// relaxed. Before them it says whether the launches before have ended.
void note(Clock& clock, const Block& home, unsigned timeline, unsigned time) {
    clock.resize(1 + home.threads.size() + BARRIERS);
    clock[timeline - home.first_timeline + 1] = time;
}
// All that a thread has done until now goes into the clock; what it does next is a later event.
void add_own(Clock& clock, const Thread& thread) {
    note(clock, *thread.home, thread.timeline, times[thread.timeline]++);
}
bool before(const Event& event, const Thread& me) {
    if (event.time == 0 || event.timeline == me.timeline) return true;
    const Clock& seen = *me.seen;
    size_t i = event.timeline - me.home->first_timeline + 1;
    return event.timeline >= me.home->first_timeline && i < seen.size() && seen[i] >= event.time;
}

uintptr_t last_page;
Cell* last_cells;  // of that page
Cell* cells(uintptr_t page) {
    if (last_cells && last_page == page) return last_cells;
    Cell*& found = pages[page];
    if (!found) found = new Cell[CELLS]();
    last_page = page;
    return last_cells = found;
}

void describe(const Thread& me, const char* address) {
    ptrdiff_t offset = address - me.home->shared;
    if (offset >= 0 && offset < (ptrdiff_t)me.home->shared_bytes)
        return say("byte %td of the dynamic shared memory", offset);
    for (auto& [key, place] : me.home->variables)
        if (address >= place.data() && address < place.data() + place.size()) {
            uintptr_t first = ((uintptr_t)place.data() + 127) / 128 * 128;
            return say("byte %td of a __shared__ variable", address - (char*)first);
        }
    const Launch& launch = *machine->launch;
    for (size_t i = 0; i < launch.memories; i++)
        if (address >= launch.memory[i].first && address < launch.memory[i].first + launch.memory[i].bytes)
            return say("byte %td of tensor %zu", address - launch.memory[i].first, i);
    say("address %p", (const void*)address);
}

[[noreturn]] void report(Thread& me, const char* address, bool write, const Event& other, bool other_wrote) {
    say("race: ");
    describe(me, address);
    say(" %s by block %u, thread %u %s and %s", write ? "written" : "read", me.home->number, me.index,
        trail(me).c_str(), other_wrote ? "written" : "read");
    if (owners[other.timeline] == A_BARRIER) say(" by an asynchronous copy");
    else say(" by block %u, thread %u", (unsigned)(owners[other.timeline] >> 32), (unsigned)owners[other.timeline]);
    say(" @%p@, and nothing orders the two", other.site);
    machine->failed = true;
    siglongjmp(machine->escape, -1);
}

void check_bounds(Thread& me, const char* address, size_t bytes, bool write) {
    const Launch& launch = *machine->launch;
    if (!launch.memory) return;
    for (size_t i = 0; i < launch.memories; i++) {
        const Memory& m = launch.memory[i];
        if (address >= m.first && address + bytes <= m.first + m.bytes) return;
    }
    for (auto& [key, place] : me.home->variables)
        if (address >= place.data() && address < place.data() + place.size()) return;
    const Memory* near = nullptr;
    for (size_t i = 0; i < launch.memories; i++)
        if (launch.memory[i].first <= address && (!near || near->first < launch.memory[i].first))
            near = &launch.memory[i];
    if (near)
        fail("%zu bytes %s outside the tensors of the launch, nearest tensor %td: byte %td of %zu", bytes,
             write ? "written" : "read", near - launch.memory, address - near->first, near->bytes);
    fail("%zu bytes %s outside the tensors of the launch", bytes, write ? "written" : "read");
}

void access_cells(Thread& me, const char* address, size_t bytes, bool write, const Event& now) {
    for (uintptr_t grain = (uintptr_t)address / GRAIN; grain <= ((uintptr_t)address + bytes - 1) / GRAIN; grain++) {
        Cell& cell = cells(grain / CELLS)[grain % CELLS];
        const char* place = (const char*)(grain * GRAIN);
        if (!before(cell.write, me)) report(me, place, write, cell.write, true);
        if (write) {
            for (Event& read : cell.reads)
                if (!before(read, me)) report(me, place, true, read, false);
            cell = Cell();
            cell.write = now;
            continue;
        }
        Event* free = &cell.reads[(grain + now.time + now.timeline) % 3];
        for (Event& read : cell.reads)
            if (before(read, me)) free = &read;
        *free = now;
    }
}

void access(const void* address, size_t bytes, bool write, const Frame* site) {
    if (here == nullptr || (uintptr_t)address - (uintptr_t)stacks < stack_bytes) return;
    const Memory& code = machine->kernel->code;
    if ((uintptr_t)address - (uintptr_t)code.first < code.bytes || address == &here) return;
    Thread& me = *current();
    me.site = site;
    const char* place = (const char*)address;
    if (place < me.home->shared || place + bytes > me.home->shared + me.home->shared_bytes)
        check_bounds(me, place, bytes, write);
    access_cells(me, place, bytes, write, {me.timeline, times[me.timeline], site->site});
}

}  // namespace

void begin(char* from, size_t bytes) {
    stacks = from, stack_bytes = bytes;
    for (auto& [page, cells] : pages) delete[] cells;
    last_cells = nullptr;
    pages.clear(), times.clear(), owners.clear();
    everything_before = std::make_shared<Clock>(1, 1);
}
void start_block(Block& block) {
    if (!active()) return;
    block.first_timeline = (unsigned)times.size();
    for (Thread* thread : block.threads) {
        thread->timeline = block.first_timeline + thread->index;
        thread->seen = everything_before;
        owners.push_back((uint64_t)block.number << 32 | thread->index);
    }
    owners.resize(owners.size() + BARRIERS, A_BARRIER);
    times.resize(owners.size(), 1);
}
void start_barrier(Block& home, Barrier& barrier) {
    if (!active()) return;
    if (home.barriers.size() > BARRIERS) fail("races are found among at most %u barriers of a block", BARRIERS);
    barrier.timeline = home.first_timeline + (unsigned)(home.threads.size() + home.barriers.size() - 1);
}
void meet(Thread* const* threads, size_t count) {
    if (!active()) return;
    auto all = std::make_shared<Clock>(*threads[0]->seen);
    for (size_t i = 1; i < count; i++)
        if (threads[i]->seen != threads[i - 1]->seen) join(*all, *threads[i]->seen);
    for (size_t i = 0; i < count; i++) add_own(*all, *threads[i]);
    for (size_t i = 0; i < count; i++) threads[i]->seen = all;
}
void acquire(const Knowledge& from) {
    static Knowledge last_seen, last_from, last;  // neighbours often know the same and learn the same
    if (!active() || !from || current()->seen == from) return;
    Knowledge& seen = current()->seen;
    if (seen != last_seen || from != last_from) {
        auto both = std::make_shared<Clock>(*seen);
        join(*both, *from);
        last_seen = seen, last_from = from, last = both;
    }
    seen = last;
}
void arrive(Barrier& barrier) {
    if (!active()) return;
    Thread& me = *current();
    if (barrier.last != me.seen) join(barrier.gathered, *me.seen);
    barrier.last = me.seen;
    add_own(barrier.gathered, me);
}
// A copy is an event of its barrier's timeline, known to whoever has waited for the phase that it completes.
void complete(const Block& home, Barrier& barrier) {
    if (!active()) return;
    note(barrier.gathered, home, barrier.timeline, ++barrier.completed);
    barrier.done = std::make_shared<Clock>(barrier.gathered);
    times[barrier.timeline] = barrier.completed + 1;
}
void copy(void* shared, const void* global, unsigned bytes, const Barrier& barrier, const Frame* site) {
    if (!active()) return;
    Thread& me = *current();
    const Event now = {me.timeline, times[me.timeline], site->site};
    me.site = site;
    check_bounds(me, (const char*)global, bytes, false);
    access_cells(me, (const char*)global, bytes, false, now);
    for (uintptr_t grain = (uintptr_t)global / GRAIN; grain < ((uintptr_t)global + bytes) / GRAIN; grain++)
        if (const Event& write = cells(grain / CELLS)[grain % CELLS].write; write.time)
            fail("bulk_copy reads what threads of this launch wrote, which needs a fence between the two proxies");
    access_cells(me, (const char*)shared, bytes, true, now);
    for (uintptr_t grain = (uintptr_t)shared / GRAIN; grain < ((uintptr_t)shared + bytes) / GRAIN; grain++)
        cells(grain / CELLS)[grain % CELLS].write = {barrier.timeline, times[barrier.timeline], site->site};
}

void check(const void* address, size_t bytes, bool write, const Frame* site) {
    current()->site = site;
    if (active()) check_bounds(*current(), (const char*)address, bytes, write);
}

void touch(const void* address, size_t bytes, bool write, const Frame* site) {
    if (active()) access(address, bytes, write, site);
}

// Memory that is given out again has no history.
void forget(const void* memory, size_t bytes) {
    if (!active()) return;
    for (uintptr_t page = (uintptr_t)memory / PAGE; page <= ((uintptr_t)memory + bytes - 1) / PAGE; page++) {
        auto found = pages.find(page);
        if (found == pages.end()) continue;
        for (uintptr_t i = 0; i < CELLS; i++) {
            uintptr_t address = page * PAGE + i * GRAIN;
            if (address >= (uintptr_t)memory && address < (uintptr_t)memory + bytes) found->second[i] = Cell();
        }
    }
}

}  // namespace emulated::order

#define HOOK extern "C" __attribute__((visibility("default"))) void
#define ACCESS(bytes)                                                                                  \
    HOOK __tsan_read##bytes(void* p) { emulated::order::access(p, bytes, false, SITE); }               \
    HOOK __tsan_write##bytes(void* p) { emulated::order::access(p, bytes, true, SITE); }               \
    HOOK __tsan_unaligned_read##bytes(void* p) { emulated::order::access(p, bytes, false, SITE); }     \
    HOOK __tsan_unaligned_write##bytes(void* p) { emulated::order::access(p, bytes, true, SITE); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
HOOK __tsan_read_range(void* p, size_t bytes) { emulated::order::access(p, bytes, false, SITE); }
HOOK __tsan_write_range(void* p, size_t bytes) { emulated::order::access(p, bytes, true, SITE); }
HOOK __tsan_init() {}
HOOK __tsan_func_entry(void*) {}
HOOK __tsan_func_exit() {}
