// A fiber runs until it waits; waiting fibers are woken by the event that they wait for.
#include "machine.h"

#include <cstring>
#include <new>
#include <sys/mman.h>

asm(R"(
.text
.globl emulated_switch
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

Here* here;
Machine* machine;

unsigned roll(unsigned below) {
    machine->random ^= machine->random << 13;
    machine->random ^= machine->random >> 7;
    machine->random ^= machine->random << 17;
    return (unsigned)((machine->random >> 20) % below);
}
void happened() { machine->spins = machine->vain = 0; }
void wake(Thread* thread) {
    thread->waits = nullptr;
    machine->ready.push_back(thread);
}
void wake(std::vector<Thread*>& threads) {
    happened();
    for (Thread* thread : threads) wake(thread);
    threads.clear();
}
void leave() {
    Thread* me = current();
    me->looked.clear(), me->repeated = 0;
    emulated_switch(&me->stack_pointer, machine->stack_pointer);
}
void wait(const char* what, const Frame* site, unsigned a, unsigned b) {
    Thread* me = current();
    me->waits = what, me->site = site, me->detail[0] = a, me->detail[1] = b;
    leave();
}
void take_turns() {
    machine->spins++;
    wake(current());
    leave();
}
void perhaps_turn() {
    if (machine->launch->seed ? roll(16) == 0 : ++machine->turns % 256 == 0) take_turns();
}

// What a block's last threads wait for may be the end of this one.
static void run_thread() {
    machine->kernel->body(machine->launch->values);
    Thread* me = current();
    Block& home = *me->home;
    me->ended = true;
    happened();
    home.live--;
    Named& all = home.named[0];
    if (all.expected == home.threads.size() && !all.waiting.empty() && all.waiting.size() >= home.live) {
        order::meet(all.waiting.data(), all.waiting.size());
        wake(all.waiting);
    }
    leave();
}

// Stacks outlive launches; each lies above a page that faults.
static char* stacks;
static char* take_stack() {
    static size_t made;
    if (machine->stacks.empty()) {
        char* guard = stacks + made++ * (STACK + PAGE);
        mprotect(guard, PAGE, PROT_NONE);
        return guard + PAGE;
    }
    char* stack = machine->stacks.back();
    machine->stacks.pop_back();
    return stack;
}

// It ends, but for bytes that must not change, where a stretch begins that faults.
static void make_shared(Block& block) {
    block.shared_bytes = machine->launch->shared;
    size_t pages = (block.shared_bytes + 127 + PAGE - 1) / PAGE * PAGE;
    block.map_bytes = pages + 2 * GUARD;
    block.map = (char*)mmap(nullptr, block.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block.map == MAP_FAILED) fail("no memory for the shared memory of block %u", block.number);
    mprotect(block.map + GUARD, pages, PROT_READ | PROT_WRITE);
    block.shared = block.map + GUARD + pages - (block.shared_bytes + 127) / 128 * 128;
    memset(block.map + GUARD, FENCE, pages);
    memset(block.shared, UNWRITTEN, block.shared_bytes);
    order::forget(block.map, block.map_bytes);
}

static void start_block(unsigned number) {
    const Launch& launch = *machine->launch;
    Block* block = new Block();
    machine->blocks.push_back(block);
    block->number = number, block->live = launch.threads;
    make_shared(*block);
    for (unsigned i = 0; i < launch.threads; i++) {
        char* stack = take_stack();
        char* top = stack + STACK - (sizeof(Thread) + 63) / 64 * 64;
        Thread& thread = *new (top) Thread();
        thread.thread = {i, 0, 0}, thread.block_size = {launch.threads, 1, 1};
        thread.block = {number % launch.grid[0], number / launch.grid[0] % launch.grid[1],
                        number / launch.grid[0] / launch.grid[1]};
        thread.grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
        thread.dynamic_shared = block->shared, thread.home = block, thread.index = i, thread.stack = stack;
        void** first = (void**)top - 8;  // after `ret` the stack is as after a call
        first[7] = first[5] = nullptr, first[6] = (void*)run_thread;
        thread.stack_pointer = first;
        block->threads.push_back(&thread);
        wake(&thread);
    }
    order::start_block(*block);
}

static void end_block(Block& block) {
    if (block.copies) fail("block %u ended while a copy into its shared memory was on its way", block.number);
    const char *end = block.shared + block.shared_bytes, *last = block.map + block.map_bytes - GUARD;
    for (const char* p = block.map + GUARD; p < last; p++) {
        if (p == block.shared) p = end;
        if (p < last && (unsigned char)*p != FENCE)
            fail("block %u wrote outside its dynamic shared memory, at byte %td of %zu", block.number,
                 p - block.shared, block.shared_bytes);
    }
}
static void free_block(Block* block) {
    munmap(block->map, block->map_bytes);
    for (Thread* thread : block->threads) {
        machine->stacks.push_back(thread->stack);
        thread->~Thread();
    }
    for (Block*& other : machine->blocks)
        if (other == block) {
            other = machine->blocks.back();
            machine->blocks.pop_back();
            break;
        }
    delete block;
}

static void finish_copy() {
    size_t which = machine->launch->seed ? roll((unsigned)machine->copies.size()) : 0;
    Copy copy = machine->copies[which];
    machine->copies.erase(machine->copies.begin() + which);
    memcpy(copy.to, copy.from, copy.bytes);
    happened();
    copy.home->copies--;
    Barrier& barrier = copy.home->barriers.at(copy.barrier);
    barrier.bytes -= copy.bytes;
    flip_if_complete(*copy.home, barrier);
}

static Thread* choose() {
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
static bool idle() { return machine->next == machine->ready.size(); }

static void give_up(const char* why) {
    say("%s", why);
    report_waiting();
    machine->failed = true;
}

static void wake_looking() {
    for (Thread* thread : machine->looking) wake(thread);
    machine->looking.clear();
}

// Something that happens by itself; false when nothing is left to happen. Who looks may find what was there before.
static bool happen() {
    size_t letters = machine->letters.size(), copies = machine->copies.size();
    if (letters + copies > 0) {
        if (roll((unsigned)(letters + copies)) < letters) deliver(roll((unsigned)letters));
        else finish_copy();
    } else if (machine->vain++ >= 3) {
        return false;
    }
    wake_looking();
    return true;
}

// The same now and then, although there are threads that can run.
static void perhaps_happen() {
    if (!machine->letters.empty() && roll(2) == 0) deliver(roll((unsigned)machine->letters.size()));
    if (!machine->copies.empty() && roll(32) == 0) finish_copy();
    if (!machine->looking.empty() && roll(256) == 0) wake_looking();
}

// With a seed all blocks that can be there are there from the start; without, one more whenever all threads wait.
static void run_all() {
    const Launch& launch = *machine->launch;
    unsigned count = launch.grid[0] * launch.grid[1] * launch.grid[2], started = 0;
    while (!machine->failed) {
        auto room = [&] { return started < count && (machine->blocks.size() + 1) * launch.threads <= RESIDENT; };
        while (room() && (launch.seed || idle())) start_block(started++);
        while (idle() && !machine->blocks.empty() && happen()) {}
        if (idle()) {
            if (machine->blocks.empty()) return;
            if (started < count) say("%u of %u blocks found no room yet; ", count - started, count);
            return give_up("deadlock: no thread can go on");
        }
        if (launch.seed) perhaps_happen();
        Thread* thread = choose();
        here = thread;
        emulated_switch(&machine->stack_pointer, thread->stack_pointer);
        here = nullptr;
        if (machine->spins > 4000000) return give_up("the threads take turns for ever and nothing happens");
        if (thread->home->live == 0) {
            end_block(*thread->home);
            free_block(thread->home);
        }
    }
}

const char* launch(const Launch& launch, const Kernel& kernel) {
    static std::string said;
    static std::vector<char*> spare;
    constexpr size_t ALL = (STACK + PAGE) * RESIDENT;
    if (launch.threads == 0 || launch.threads > 1024) return "a block has 1 to 1024 threads";
    if (!stacks)
        stacks = (char*)mmap(nullptr, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    Machine own = {};
    machine = &own;
    own.launch = &launch, own.kernel = &kernel, own.random = launch.seed * 0x9e3779b97f4a7c15ull + 1;
    own.stacks = std::move(spare);
    order::begin(stacks, ALL);
    Signals signals(launch.seconds);
    int number = sigsetjmp(own.escape, 1);
    if (number == 0) run_all();
    else if (number > 0) signals.explain(number);
    here = nullptr;
    while (!own.blocks.empty()) free_block(own.blocks.back());
    spare = std::move(own.stacks);
    said = own.said;
    machine = nullptr;
    return own.failed ? said.c_str() : nullptr;
}

}  // namespace emulated
