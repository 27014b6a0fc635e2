// The threads of an emulated launch: one fiber each, all in one thread of the operating system.
//
// What a kernel's builtins are made of. Every function that can wait or fail takes note of where it was called from, so
// that a report can name the line.
#pragma once
#include <cstddef>

#pragma GCC visibility push(default)  // one library of the emulator serves those of all kernels
#define SITE ((const emulated::Frame*)__builtin_frame_address(0))

struct uint3 {
    unsigned x, y, z;
};

namespace emulated {

struct Frame {  // as a function with a frame pointer has it on its stack
    const Frame* before;
    const void* site;  // where the function returns to
};
struct Here {  // what one CUDA thread knows about itself
    uint3 thread, block, block_size, grid_size;
    char* dynamic_shared;
};
extern Here* here;  // of the thread that runs now

struct Memory {
    const char* first;
    size_t bytes;
};
struct Launch {  // filled by __init__.py
    unsigned grid[3], threads, shared, arguments;
    unsigned long long seed;  // 0: threads take turns in order and a copy arrives as late as it can
    double seconds;           // of processor time before the launch is given up
    void* const* values;      // where each argument lies
    const size_t* sizes;
    const Memory* memory;  // all that the kernel may touch; null: anything
    size_t memories;
    unsigned ordered;  // whether races are looked for, in a kernel compiled with -fsanitize=thread
};

struct Kernel {
    void (*body)(void* const* values);
    Memory code;  // of its library: instructions and constants
};

// Runs all blocks; null, or what went wrong.
const char* launch(const Launch& launch, const Kernel& kernel);
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// All lanes of `mask` hand in a record; the last one calls `combine` with all of them. The same `combine` for all.
// `orders`: what a lane did before is seen by the others after.
void meet(const char* what, bool orders, unsigned mask, void* record, void (*combine)(void** records, unsigned mask));
// What an asynchronous instruction does, with a copy of its record, when its thread waits for those it has committed.
void begin_later(void (*done)(const void* record), const void* record, size_t bytes);
void commit_begun();
void finish_committed();
void sync_block();
void sync_named(int id, int threads);
void take_turns();    // lets the others run
void perhaps_turn();  // the same, now and then
void* shared_variable(const void* key, size_t bytes);

void barrier_init(unsigned long long* barrier, unsigned arrivals);
void barrier_arrive(unsigned long long* barrier, unsigned bytes);
void barrier_wait(unsigned long long* barrier, unsigned parity);
void bulk_copy(void* shared, const void* global, unsigned bytes, unsigned long long* barrier);
// Of the thread itself: of the copies since the last commit, all have arrived when at most `open` later commits are
// awaited; with a seed some arrive at once.
void async_copy(void* shared, const void* global, unsigned bytes, unsigned valid);
void async_commit();
void async_wait(unsigned open);
// Relaxed: seen by others some time, in any order. A thread that keeps on receiving the same waits for news.
void send(void* place, unsigned long long value, unsigned bytes);
void receive(void* to, const void* place, unsigned bytes, unsigned count);

}  // namespace emulated
#pragma GCC visibility pop
