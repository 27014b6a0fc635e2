// See scheduler.h. A fiber runs until it waits; waiting fibers are woken by the event that they wait for.
#include "scheduler.h"

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <string>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

// Saves what a called function must preserve, then continues on the other stack.
extern "C" void emulated_switch(void** save, void* to) __attribute__((visibility("hidden")));
asm(R"(
.text
.globl emulated_switch
.hidden emulated_switch
.type emulated_switch, @function
emulated_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulated_switch, .-emulated_switch
)");

namespace emulated {
namespace {

constexpr size_t PAGE = 4096, STACK = 64 * 1024;
constexpr unsigned RESIDENT = 8192;  // threads alive at once; later blocks start as earlier ones end
constexpr int NAMED = 16;
constexpr unsigned char UNWRITTEN = 0xff, FENCE = 0xa5;

struct Block;
struct Thread : Here {
    void* stack_pointer;
    char* stack;
    Block* home;
    unsigned index;     // in the block
    const char* waits;  // what for; null while it can run
    const void* site;
    unsigned detail[2];
    const unsigned* counter;  // of a grid barrier
    unsigned mask;            // of a warp's meeting
    void* record;
    void (*combine)(void**, unsigned);
};
struct Barrier {  // in shared memory, see PTX mbarrier
    unsigned expected, pending, phase;
    long long bytes;
    std::vector<Thread*> waiting;
};
struct Named {
    unsigned expected;
    std::vector<Thread*> waiting;
};
struct Block {
    unsigned number, live;
    std::vector<Thread> threads;
    Named named[NAMED];
    std::map<unsigned long long*, Barrier> barriers;
    std::map<const void*, std::vector<char>> variables;
    char *map, *shared;
    size_t map_bytes, shared_bytes;
    int copies;
};
struct Copy {
    Block* home;
    void* to;
    const void* from;
    unsigned bytes;
    unsigned long long* barrier;
};

struct Machine {
    const Launch* launch;
    void (*body)(void* const*);
    void* stack_pointer;
    std::vector<Thread*> ready;
    size_t next;  // the first of `ready` that has not run
    std::vector<Thread*> counting;
    std::vector<Copy> copies;
    std::vector<Block*> blocks;
    std::vector<char*> stacks;
    unsigned long long random;
    unsigned spins, turns;
    std::string said;
    bool failed;
    sigjmp_buf escape;
};
Machine* machine;

Thread* current() { return static_cast<Thread*>(here); }
unsigned roll(unsigned below) {
    machine->random ^= machine->random << 13;
    machine->random ^= machine->random >> 7;
    machine->random ^= machine->random << 17;
    return (unsigned)((machine->random >> 20) % below);
}

void wake(Thread* thread) {
    thread->waits = nullptr;
    machine->ready.push_back(thread);
}
void wake(std::vector<Thread*>& threads) {
    machine->spins = 0;
    for (Thread* thread : threads) wake(thread);
    threads.clear();
}
void leave() {  // to the scheduler, until this thread is woken
    Thread* me = current();
    emulated_switch(&me->stack_pointer, machine->stack_pointer);
}
void wait(const char* what, const void* site, unsigned a = 0, unsigned b = 0) {
    Thread* me = current();
    me->waits = what, me->site = site, me->detail[0] = a, me->detail[1] = b;
    leave();
}

void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void say(const char* format, ...) {
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    machine->said += line;
}

void run_thread() {
    machine->body(machine->launch->values);
    Thread* me = current();
    Block& home = *me->home;
    me->waits = "ended";
    machine->spins = 0;
    Named& all = home.named[0];
    home.live--;
    if (all.expected && all.waiting.size() >= home.live && all.expected == home.threads.size()) wake(all.waiting);
    leave();
}

void make_shared(Block& block) {
    block.shared_bytes = machine->launch->shared;
    size_t pages = (block.shared_bytes + 127 + PAGE - 1) / PAGE * PAGE;
    block.map_bytes = pages + 2 * PAGE;
    block.map = (char*)mmap(nullptr, block.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(block.map + PAGE, pages, PROT_READ | PROT_WRITE);
    char* end = block.map + PAGE + pages;
    block.shared = end - (block.shared_bytes + 127) / 128 * 128;
    memset(block.map + PAGE, FENCE, pages);
    memset(block.shared, UNWRITTEN, block.shared_bytes);
}

void end_block(Block& block) {
    if (block.copies) fail("block %u ended while a copy into its shared memory was on its way", block.number);
    const char *end = block.shared + block.shared_bytes, *last = block.map + block.map_bytes - PAGE;
    for (const char* p = block.map + PAGE; p < last; p++) {
        if (p == block.shared) p = end;
        if (p < last && (unsigned char)*p != FENCE)
            fail("block %u wrote outside its dynamic shared memory, at byte %td of %zu", block.number,
                 p - block.shared, block.shared_bytes);
    }
    munmap(block.map, block.map_bytes);
    for (Thread& thread : block.threads) machine->stacks.push_back(thread.stack);
}

void start_block(unsigned number) {
    const Launch& launch = *machine->launch;
    Block* block = new Block();
    machine->blocks.push_back(block);
    block->number = number, block->live = launch.threads;
    make_shared(*block);
    block->threads.resize(launch.threads);
    for (unsigned i = 0; i < launch.threads; i++) {
        Thread& thread = block->threads[i];
        thread.thread = {i, 0, 0}, thread.block_size = {launch.threads, 1, 1};
        thread.block = {number % launch.grid[0], number / launch.grid[0] % launch.grid[1],
                        number / launch.grid[0] / launch.grid[1]};
        thread.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
        thread.dynamic_shared = block->shared, thread.home = block, thread.index = i;
        thread.stack = machine->stacks.back();
        machine->stacks.pop_back();
        void** top = (void**)(thread.stack + STACK - 64);
        top[0] = (void*)run_thread;
        thread.stack_pointer = top - 6;
        wake(&thread);
    }
}

void finish(Copy copy) {
    memcpy(copy.to, copy.from, copy.bytes);
    machine->spins = 0;
    copy.home->copies--;
    Barrier& barrier = copy.home->barriers.at(copy.barrier);
    barrier.bytes -= copy.bytes;
    if (barrier.pending == 0 && barrier.bytes == 0)
        barrier.phase ^= 1, barrier.pending = barrier.expected, wake(barrier.waiting);
}
void finish_one() {
    size_t which = machine->launch->seed ? roll((unsigned)machine->copies.size()) : 0;
    Copy copy = machine->copies[which];
    machine->copies.erase(machine->copies.begin() + which);
    finish(copy);
}

bool reached(const unsigned* counter, unsigned target) { return (int)(*(volatile unsigned*)counter - target) >= 0; }
void look_at_counters() {
    size_t kept = 0;
    for (Thread* thread : machine->counting)
        if (reached(thread->counter, thread->detail[0])) machine->spins = 0, wake(thread);
        else machine->counting[kept++] = thread;
    machine->counting.resize(kept);
}

// Who waits where, threads with the same place and reason together.
void report_waiting() {
    for (Block* block : machine->blocks) {
        std::map<std::string, std::vector<unsigned>> groups;
        for (Thread& thread : block->threads) {
            if (thread.waits && !strcmp(thread.waits, "ended")) continue;
            char what[256] = "can run", place[64] = "";
            if (thread.waits) {
                snprintf(what, sizeof what, thread.waits, thread.detail[0], thread.detail[1]);
                snprintf(place, sizeof place, " @%p@", thread.site);
            }
            groups[std::string(what) + place].push_back(thread.index);
        }
        for (auto& [what, threads] : groups) {
            say("\n  block %u, threads", block->number);
            for (size_t i = 0; i < threads.size();) {
                size_t j = i;
                while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) j++;
                say(j > i ? " %u-%u" : " %u", threads[i], threads[j]);
                i = j + 1;
            }
            say(": %s", what.c_str());
        }
    }
}

Thread* choose() {
    auto& ready = machine->ready;
    size_t left = ready.size() - machine->next;
    if (machine->launch->seed) std::swap(ready[machine->next], ready[machine->next + roll((unsigned)left)]);
    Thread* thread = ready[machine->next++];
    if (machine->next > 4096 && machine->next * 2 > ready.size()) {
        ready.erase(ready.begin(), ready.begin() + machine->next);
        machine->next = 0;
    }
    return thread;
}

void run_all() {
    const Launch& launch = *machine->launch;
    unsigned count = launch.grid[0] * launch.grid[1] * launch.grid[2], started = 0, alive = 0;
    while (true) {
        while (started < count && (alive == 0 || (alive + 1) * launch.threads <= RESIDENT))
            start_block(started++), alive++;
        if (machine->next == machine->ready.size()) look_at_counters();
        if (machine->next == machine->ready.size()) {
            if (alive == 0) return;
            if (machine->copies.empty()) {
                say("deadlock: no thread can go on");
                if (started < count) say("; %u of %u blocks could not start yet", count - started, count);
                report_waiting();
                machine->failed = true;
                return;
            }
            finish_one();
            continue;
        }
        if (launch.seed && !machine->copies.empty() && roll(32) == 0) finish_one();
        Thread* thread = choose();
        here = thread;
        emulated_switch(&machine->stack_pointer, thread->stack_pointer);
        here = nullptr;
        if (machine->failed) return;
        if (machine->spins > 4000000) {
            say("the threads take turns for ever and nothing happens");
            report_waiting();
            machine->failed = true;
            return;
        }
        if (thread->waits && thread->home->live == 0) {
            Block* home = thread->home;
            end_block(*home);
            if (machine->failed) return;
            for (Block*& block : machine->blocks)
                if (block == home) {
                    block = machine->blocks.back();
                    machine->blocks.pop_back();
                    break;
                }
            delete home;
            alive--;
        }
    }
}

void on_signal(int number, siginfo_t* info, void* context) {
    if (here == nullptr) {
        signal(number, SIG_DFL);
        return;
    }
    machine->failed = true;
    machine->spins = (unsigned)number;
    current()->site = (void*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP];
    current()->record = info->si_addr;
    siglongjmp(machine->escape, number);
}

void explain_signal(int number, int watchdog) {
    Thread* me = current();
    unsigned block = me->home->number;
    if (number == watchdog) {
        say("out of time: block %u, thread %u ran here @%p@", block, me->index, (const void*)me->site);
        report_waiting();
    } else if (number == SIGILL) {
        say("block %u, thread %u: an index outside its array or an address off its alignment @%p@", block, me->index,
            (const void*)me->site);
    } else {
        say("block %u, thread %u: %s at address %p", block, me->index, strsignal(number), me->record);
        ptrdiff_t offset = (char*)me->record - me->home->shared, bytes = (ptrdiff_t)me->home->shared_bytes;
        ptrdiff_t below = (char*)me->record - me->stack;
        if (offset >= -(ptrdiff_t)PAGE && offset < bytes + 2 * (ptrdiff_t)PAGE)
            say(", byte %td of %td of its dynamic shared memory", offset, bytes);
        else if (below >= -(ptrdiff_t)PAGE && below < 0) say(", its stack is full");
        say(" @%p@", (const void*)me->site);
    }
}

class Signals {  // faults and the watchdog become a report while this lives
    static constexpr int NUMBERS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
    struct sigaction before[5];
    stack_t stack_before;
    timer_t timer;
    std::vector<char> stack;

   public:
    const int watchdog = SIGRTMIN + 5;
    explicit Signals(double seconds) : stack(64 * 1024) {
        stack_t own = {};
        own.ss_sp = stack.data(), own.ss_size = stack.size();
        sigaltstack(&own, &stack_before);
        struct sigaction action = {};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int i = 0; i < 4; i++) sigaction(NUMBERS[i], &action, &before[i]);
        sigaction(watchdog, &action, &before[4]);
        sigevent event = {};
        event.sigev_notify = SIGEV_THREAD_ID, event.sigev_signo = watchdog;
        event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
        timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer);
        itimerspec when = {};
        when.it_value.tv_sec = (time_t)seconds, when.it_value.tv_nsec = (long)((seconds - (time_t)seconds) * 1e9);
        timer_settime(timer, 0, &when, nullptr);
    }
    ~Signals() {
        timer_delete(timer);
        for (int i = 0; i < 4; i++) sigaction(NUMBERS[i], &before[i], nullptr);
        sigaction(watchdog, &before[4], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
};

Barrier& barrier_at(unsigned long long* barrier, const char* doing) {
    Thread* me = current();
    auto found = me->home->barriers.find(barrier);
    if (found == me->home->barriers.end()) fail("%s on a barrier that was not initialised", doing);
    if (*barrier != (0xba771e00ull << 32 | (uint32_t)(uintptr_t)barrier)) fail("%s on a barrier overwritten since", doing);
    return found->second;
}
void flip_if_complete(Barrier& barrier) {
    if (barrier.pending || barrier.bytes) return;
    barrier.phase ^= 1, barrier.pending = barrier.expected;
    wake(barrier.waiting);
}

}  // namespace

Here* here;

void fail(const char* format, ...) {
    if (here) say("block %u, thread %u: ", current()->home->number, current()->index);
    char line[512];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    machine->said += line;
    if (here) say(" @%p@", current()->site);
    machine->failed = true;
    siglongjmp(machine->escape, -1);
}

void meet(const char* what, unsigned mask, void* record, void (*combine)(void**, unsigned)) {
    Thread* me = current();
    Thread* warp = me - me->index % 32;
    unsigned lane = me->index % 32, size = (unsigned)me->home->threads.size() - (me->index - lane);
    me->site = SITE;
    if (!(mask >> lane & 1)) fail("%s by lane %u, which is not in its mask %08x", what, lane, mask);
    if (size < 32 && mask >> size) fail("%s with mask %08x, but the warp has %u lanes", what, mask, size);
    me->mask = mask, me->record = record, me->combine = combine;
    void* records[32] = {};
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread& other = warp[i];
        if (&other != me && (!other.record || other.mask != mask)) {
            wait(what, SITE);
            return;
        }
        if (other.combine != combine) fail("%s, but lane %u waits at another operation (%s)", what, i, other.waits);
        records[i] = other.record;
    }
    combine(records, mask);
    machine->spins = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) {
            warp[i].record = nullptr;
            if (&warp[i] != me) wake(&warp[i]);
        }
    if (machine->launch->seed) wake(me), leave();
}

static void sync(int id, unsigned threads, const char* what, const void* site) {
    Thread* me = current();
    Named& barrier = me->home->named[id];
    me->site = site;
    if (!barrier.waiting.empty() && barrier.expected != threads)
        fail("barrier %d of %u threads, but others wait there for %u threads", id, threads, barrier.expected);
    barrier.expected = threads;
    unsigned needed = threads == me->home->threads.size() ? me->home->live : threads;
    if (barrier.waiting.size() + 1 >= needed) {
        wake(barrier.waiting);
        if (machine->launch->seed) wake(me), leave();
        return;
    }
    barrier.waiting.push_back(me);
    wait(what, site, (unsigned)id, threads);
}
void sync_block() { sync(0, (unsigned)current()->home->threads.size(), "__syncthreads", SITE); }
void sync_named(int id, int threads) {
    current()->site = SITE;
    if (id < 0 || id >= NAMED) fail("block_sync of barrier %d: a block has barriers 0 to %d", id, NAMED - 1);
    if (threads <= 0 || threads % 32) fail("block_sync for %d threads, which are not whole warps", threads);
    sync(id, (unsigned)threads, "block_sync of barrier %u for %u threads", SITE);
}
void take_turns() {
    machine->spins++;
    wake(current());
    leave();
}
void perhaps_turn() {
    if (machine->launch->seed ? roll(16) == 0 : ++machine->turns % 256 == 0) take_turns();
}

void* shared_variable(const void* key, size_t bytes) {
    std::vector<char>& place = current()->home->variables[key];
    if (place.empty()) place.assign(bytes + 128, (char)UNWRITTEN);
    return (void*)(((uintptr_t)place.data() + 127) / 128 * 128);
}

void barrier_init(unsigned long long* barrier, unsigned arrivals) {
    Thread* me = current();
    me->site = SITE;
    if ((uintptr_t)barrier % 8) fail("barrier_init off the alignment of 8 bytes");
    if (arrivals == 0) fail("barrier_init with no arrivals");
    *barrier = 0xba771e00ull << 32 | (uint32_t)(uintptr_t)barrier;
    me->home->barriers[barrier] = Barrier{arrivals, arrivals, 0, 0, {}};
}
void barrier_arrive(unsigned long long* at, unsigned bytes) {
    current()->site = SITE;
    Barrier& barrier = barrier_at(at, "barrier_arrive");
    barrier.bytes += bytes;
    barrier.pending--;
    flip_if_complete(barrier);
    if (barrier.pending == 0 && barrier.bytes < 0) fail("more bytes arrived at a barrier than were announced");
    if (barrier.pending > barrier.expected) fail("more arrivals at a barrier than it was initialised with");
}
void barrier_wait(unsigned long long* at, unsigned parity) {
    current()->site = SITE;
    Barrier& barrier = barrier_at(at, "barrier_wait");
    while (barrier.phase == (parity & 1)) {
        barrier.waiting.push_back(current());
        wait("barrier_wait for parity %u", SITE, parity);
    }
}
void bulk_copy(void* shared, const void* global, unsigned bytes, unsigned long long* at) {
    Thread* me = current();
    me->site = SITE;
    barrier_at(at, "bulk_copy");
    char* to = (char*)shared;
    if (bytes == 0 || bytes % 16) fail("bulk_copy of %u bytes, not a multiple of 16", bytes);
    if ((uintptr_t)shared % 16 || (uintptr_t)global % 16) fail("bulk_copy off the alignment of 16 bytes");
    if (to < me->home->shared || to + bytes > me->home->shared + me->home->shared_bytes)
        fail("bulk_copy to bytes %td to %td of %zu of shared memory", to - me->home->shared,
             to - me->home->shared + (ptrdiff_t)bytes, me->home->shared_bytes);
    for (unsigned i = 0; i < bytes; i += 16) (void)*((volatile const char*)global + i);
    memset(shared, UNWRITTEN, bytes);
    me->home->copies++;
    machine->copies.push_back({me->home, shared, global, bytes, at});
}

void grid_arrive(unsigned* counter) {
    ++*counter;
    look_at_counters();
}
void grid_wait(const unsigned* counter, unsigned target) {
    Thread* me = current();
    while (!reached(counter, target)) {
        me->counter = counter;
        machine->counting.push_back(me);
        wait("grid_wait for %u", SITE, target);
    }
}

const char* launch(const Launch& launch, void (*body)(void* const*)) {
    static char* stacks;
    static std::string said;
    const size_t each = STACK + PAGE;
    if (!stacks) {
        stacks = (char*)mmap(nullptr, each * RESIDENT, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (size_t i = 0; i < RESIDENT; i++) mprotect(stacks + i * each, PAGE, PROT_NONE);
    }
    Machine own = {};
    machine = &own;
    own.launch = &launch, own.body = body, own.random = launch.seed * 0x9e3779b97f4a7c15ull + 1;
    for (size_t i = RESIDENT; i-- > 0;) own.stacks.push_back(stacks + i * each + PAGE);
    Signals signals(launch.seconds);
    int number = sigsetjmp(own.escape, 1);
    if (number == 0) run_all();
    else if (number > 0) explain_signal(number, signals.watchdog);
    here = nullptr;
    for (Block* block : own.blocks) {
        if (own.failed) munmap(block->map, block->map_bytes);
        delete block;
    }
    said = own.said;
    machine = nullptr;
    return own.failed ? said.c_str() : nullptr;
}

}  // namespace emulated
