// What the emulator knows of a launch while it runs: blocks, threads and what they wait for.
#pragma once
#include "scheduler.h"

#include <csetjmp>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

// Saves what a called function must preserve, then continues on the other stack.
extern "C" void emulated_switch(void** save, void* to);

namespace emulated {

constexpr size_t PAGE = 4096, STACK = 64 * 1024, GUARD = 64 * 1024;
constexpr unsigned RESIDENT = 8192;  // threads alive at once; later blocks start as earlier ones end
constexpr int NAMED = 16;            // barriers of a block
constexpr unsigned BARRIERS = 64;    // mbarriers of a block, when races are looked for
constexpr unsigned char UNWRITTEN = 0xff, FENCE = 0xa5;

struct Later {
    void (*done)(const void* record);
    std::vector<char> record;
};

// Vector clocks: the last event of each timeline (a thread's, or an mbarrier's) known to have happened. Threads that
// have just met know the same and share it.
using Clock = std::vector<unsigned>;
using Knowledge = std::shared_ptr<const Clock>;

struct AsyncCopy {
    void* to;
    const void* from;
    unsigned bytes, valid;  // the rest of `bytes` becomes zero
};
struct Block;
struct Thread : Here {  // lies at the top of its own stack
    void* stack_pointer;
    char* stack;
    Block* home;
    unsigned index;     // in the block
    unsigned timeline;  // its component of the clocks
    Knowledge seen;     // of all timelines but its own
    const char* waits;  // what for; null while it can run
    const Frame* site;  // of the function of the emulator that it is in
    Frame fault;
    std::vector<Later> begun;  // asynchronous instructions, of which the first `committed` can be waited for
    size_t committed;
    unsigned detail[2];
    unsigned mask;  // of a warp's meeting
    void* record;
    void (*combine)(void**, unsigned);
    std::vector<const void*> looked;  // places that it received from since the news of `informed`
    unsigned informed, repeated;      // repeated: how often it received again
    std::vector<std::vector<AsyncCopy>> groups;  // committed and not yet awaited
    std::vector<AsyncCopy> asked;                // not yet committed
    bool ended;
};
struct Barrier {  // in shared memory, see PTX mbarrier
    unsigned expected, pending, phase;
    long long bytes;
    unsigned timeline, completed;
    Clock gathered;
    Knowledge last, done;  // the last that was gathered; what had been when the phase was complete
    std::vector<Thread*> waiting;
};
struct Named {
    unsigned expected = 0;
    std::vector<Thread*> waiting;
};
struct Block {
    unsigned number, live, first_timeline;
    std::vector<Thread*> threads;
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

struct Letter {
    Thread* from;
    char* place;
    unsigned long long value;
    unsigned bytes;
};

struct Machine {
    const Launch* launch;
    const Kernel* kernel;
    void* stack_pointer;
    std::vector<Thread*> ready;
    size_t next;  // the first of `ready` that has not run
    std::vector<Thread*> looking;
    std::vector<Copy> copies;
    std::vector<Letter> letters;  // sent and not yet seen by others
    std::vector<Block*> blocks;
    std::vector<char*> stacks;
    unsigned long long random;
    unsigned spins, turns;  // spins: turns since something happened
    unsigned news, vain;    // letters that arrived; times that who looks was woken since something happened
    std::string said;
    bool failed;
    sigjmp_buf escape;
};
extern Machine* machine;

inline Thread* current() { return static_cast<Thread*>(here); }
unsigned roll(unsigned below);
void wake(Thread* thread);
void wake(std::vector<Thread*>& threads);
void leave();  // to the scheduler, until this thread is woken
void happened();
void wait(const char* what, const Frame* site, unsigned a = 0, unsigned b = 0);
void say(const char* format, ...) __attribute__((format(printf, 1, 2)));
void report_waiting();
std::string trail(const Thread& thread);
void deliver(size_t which);
void flip_if_complete(const Block& home, Barrier& barrier);

// What happened before what, and the races that follow (races.cpp); all do nothing in a launch that does not ask.
namespace order {
void begin(char* stacks, size_t bytes);
void start_block(Block& block);
void start_barrier(Block& home, Barrier& barrier);
void meet(Thread* const* threads, size_t count);
void arrive(Barrier& barrier);
void acquire(const Knowledge& from);
void complete(const Block& home, Barrier& barrier);
void copy(void* shared, const void* global, unsigned bytes, const Barrier& barrier, const Frame* site);
void check(const void* address, size_t bytes, bool write, const Frame* site);  // that a launch may
void touch(const void* address, size_t bytes, bool write, const Frame* site);  // as the thread itself
void forget(const void* memory, size_t bytes);
}  // namespace order

class Signals {  // faults and the watchdog become a report while this lives (faults.cpp)
   public:
    explicit Signals(double seconds);
    ~Signals();
    void explain(int number) const;

   private:
    struct State;
    State* state;
};

}  // namespace emulated
