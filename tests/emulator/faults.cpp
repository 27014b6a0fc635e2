// Faults of a kernel, kernels that never wait, and the report of who waits where.
#include "machine.h"

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace emulated {

void say(const char* format, ...) {
    char line[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    machine->said += line;
}

void fail(const char* format, ...) {
    if (here) say("block %u, thread %u: ", current()->home->number, current()->index);
    char line[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(line, sizeof line, format, list);
    va_end(list);
    machine->said += line;
    if (here) say(" %s", trail(*current()).c_str());
    machine->failed = true;
    siglongjmp(machine->escape, -1);
}

// The calls that led to where a thread is, innermost first: "@address,address@".
std::string trail(const Thread& thread) {
    std::string found;
    const char *lowest = thread.stack, *highest = (const char*)&thread;
    for (const Frame* frame = thread.site; frame && frame->site; frame = frame->before) {
        const char* place = (const char*)frame;
        if (frame != &thread.fault && (place < lowest || place > highest - sizeof(Frame))) break;
        char address[32];
        snprintf(address, sizeof address, "%c%p", found.empty() ? '@' : ',', frame->site);
        found += address;
        if (frame != &thread.fault) lowest = place + 1;
    }
    return found + "@";
}

// Threads of a block with the same place and reason together.
void report_waiting() {
    for (Block* block : machine->blocks) {
        std::map<std::string, std::vector<unsigned>> groups;
        for (Thread* thread : block->threads) {
            if (thread->ended) continue;
            char what[256] = "can run";
            if (thread->waits) snprintf(what, sizeof what, thread->waits, thread->detail[0], thread->detail[1]);
            groups[what + (thread->waits ? " " + trail(*thread) : "")].push_back(thread->index);
        }
        for (auto& [what, threads] : groups) {
            say("\n  block %u, threads", block->number);
            for (size_t i = 0; i < threads.size();) {
                size_t j = i;
                while (j + 1 < threads.size() && threads[j + 1] == threads[j] + 1) j++;
                if (j > i) say(" %u-%u", threads[i], threads[j]);
                else say(" %u", threads[i]);
                i = j + 1;
            }
            say(": %s", what.c_str());
        }
    }
}

constexpr int FAULTS[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
struct Signals::State {
    struct sigaction before[6];
    stack_t stack_before;
    timer_t timer;
    char stack[64 * 1024];
};

static int watchdog() { return SIGRTMIN + 5; }
static void on_signal(int number, siginfo_t* info, void* context) {
    if (here == nullptr) {
        if (number == watchdog()) return;
        signal(number, SIG_DFL);
        return;
    }
    machine->failed = true;
    Thread& me = *current();
    auto* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
    me.fault = {(const Frame*)registers[REG_RBP], (const char*)registers[REG_RIP] + 1};
    me.site = &me.fault;
    me.record = info->si_addr;
    siglongjmp(machine->escape, number);
}

Signals::Signals(double seconds) : state(new State()) {
    stack_t own = {};
    own.ss_sp = state->stack, own.ss_size = sizeof state->stack;
    sigaltstack(&own, &state->stack_before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; i++) sigaction(FAULTS[i], &action, &state->before[i]);
    sigaction(watchdog(), &action, &state->before[5]);
    sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID, event.sigev_signo = watchdog();
    event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
    timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &state->timer);
    itimerspec when = {};
    when.it_value.tv_sec = (time_t)seconds, when.it_value.tv_nsec = (long)((seconds - (time_t)seconds) * 1e9);
    when.it_interval.tv_nsec = 1000000;  // again, in case the scheduler itself ran
    timer_settime(state->timer, 0, &when, nullptr);
}
Signals::~Signals() {
    timer_delete(state->timer);
    for (int i = 0; i < 5; i++) sigaction(FAULTS[i], &state->before[i], nullptr);
    sigaction(watchdog(), &state->before[5], nullptr);
    sigaltstack(&state->stack_before, nullptr);
    delete state;
}

void Signals::explain(int number) const {
    Thread* me = current();
    unsigned block = me->home->number;
    if (number == watchdog()) {
        say("out of time: block %u, thread %u ran here %s", block, me->index, trail(*me).c_str());
        report_waiting();
        return;
    }
    say("block %u, thread %u: ", block, me->index);
    if (number == SIGILL || number == SIGTRAP) {
        say("an index outside its array or an address off its alignment");
    } else {
        say("%s at address %p", strsignal(number), me->record);
        const char *place = (const char*)me->record, *map = me->home->map;
        ptrdiff_t above = place - me->stack;
        if (place >= map && place < map + me->home->map_bytes)
            say(", byte %td of %zu of its dynamic shared memory", place - me->home->shared, me->home->shared_bytes);
        else if (above >= -(ptrdiff_t)PAGE && above < 0) say(", its stack is full");
    }
    say(" %s", trail(*me).c_str());
}

}  // namespace emulated
