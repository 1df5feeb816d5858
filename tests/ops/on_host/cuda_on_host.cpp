// Runs CUDA kernels on the host, block by block, every thread as a fiber, and reports:
// - accesses to memory outside the tensors of a call, the kernel's stack and shared memory,
// - writes to read-only tensors, reads of uninitialized memory,
// - races: accesses of two threads to one place, one of them a write, not both atomic, without a barrier in
// between,
// - barriers and shuffles that not all lanes reach.
// A seed determines the order of blocks and threads.
#include "cuda_on_host.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

extern "C" __attribute__((visibility("hidden"))) char __bss_start[], _end[];

namespace cuda_on_host {

Indices indices;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr size_t kGrain = 2;  // bytes watched as a unit: no kernel accesses fewer
constexpr unsigned kLanes = 32;

// The thread that accessed a grain, and when: barriers of a block order its threads, barriers of a warp its
// lanes.
struct Access {
  int launch = -1;
  unsigned block = 0, thread = 0, block_phase = 0, warp_phase = 0;
  bool atomic = false;

  bool by(const Access& other) const { return block == other.block && thread == other.thread; }

  bool races_with(const Access& now) const {
    if (launch != now.launch || by(now) || (atomic && now.atomic)) return false;
    if (block != now.block) return true;
    if (block_phase != now.block_phase) return false;
    return thread / kLanes != now.thread / kLanes || warp_phase == now.warp_phase;
  }
};

struct Grain {
  Access write, reads[2];
  bool written = false;
};

struct Region {
  uintptr_t begin, end;
  bool writable, initialized;
  std::vector<Grain> grains;
};

enum class State { ready, at_block_barrier, at_meeting, done };

struct Fiber {
  State state = State::done;
  bool started = false;
  ucontext_t context;
  jmp_buf place;
  char* stack = nullptr;
  // While waiting for other lanes:
  unsigned mask = 0;
  Collective kind = Collective::barrier;
  uint64_t value = 0;
  uint64_t* values = nullptr;
};

std::vector<Region>& regions = *new std::vector<Region>;
std::vector<Grain>& shared_memory = *new std::vector<Grain>;  // the module's static variables
std::vector<std::unique_ptr<Fiber>>& fibers = *new std::vector<std::unique_ptr<Fiber>>;
std::vector<unsigned>& warp_phases = *new std::vector<unsigned>;
std::string& error = *new std::string;
std::mt19937& random_numbers = *new std::mt19937;
unsigned seed = 0, block_phase = 0, block_number = 0;
int launch_number = 0, first_launch = 0;
Fiber* running = nullptr;
jmp_buf scheduler;
void (*thread_body)(void*) = nullptr;
void* thread_context = nullptr;

std::string where() {
  const auto name = [](const Dim& at) {
    return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
  };
  return " by thread " + std::to_string(indices.thread.x) + " of block " + name(indices.block) +
         " of launch " + std::to_string(launch_number - first_launch);
}

void leave() {
  if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

void run_thread() {
  thread_body(thread_context);
  running->state = State::done;
  _longjmp(scheduler, 1);
}

void start(Fiber& fiber) {
  if (fiber.stack == nullptr) {
    fiber.stack = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  }
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_thread, 0);
}

void resume(unsigned thread) {
  running = fibers[thread].get();
  indices.thread = {thread, 0, 0};
  if (_setjmp(scheduler) == 0) {
    if (running->started) _longjmp(running->place, 1);
    running->started = true;
    setcontext(&running->context);
  }
  running = nullptr;
}

void watch(Grain& grain, const Access& now, bool write, bool read, const char* place) {
  const auto complain = [&](const char* what) { fail((std::string(what) + " " + place).c_str()); };
  if (read && !grain.written) complain("a read of uninitialized");
  if (grain.write.races_with(now))
    complain(write ? "a race of two writes to" : "a race of a write and a read of");
  if (write) {
    for (const Access& before : grain.reads)
      if (before.races_with(now)) complain("a race of a read and a write of");
    grain.write = now;
    grain.written = true;
  }
  if (read) {
    if (!grain.reads[0].by(now)) grain.reads[1] = grain.reads[0];
    grain.reads[0] = now;
  }
}

void access(const void* pointer, size_t size, bool write, bool read, bool atomic) {
  if (running == nullptr) return;
  const auto at = reinterpret_cast<uintptr_t>(pointer);
  const auto stack = reinterpret_cast<uintptr_t>(running->stack);
  if (at >= stack && at + size <= stack + kStackBytes) return;
  const auto own = reinterpret_cast<uintptr_t>(&indices);
  if (at >= own && at + size <= own + sizeof(indices)) return;
  const unsigned thread = indices.thread.x;
  const Access now{launch_number, block_number, thread, block_phase, warp_phases[thread / kLanes], atomic};
  for (Region& region : regions) {
    if (at < region.begin || at + size > region.end) continue;
    if (write && !region.writable) fail("a write to a read-only tensor");
    if (!region.writable) return;
    for (size_t i = (at - region.begin) / kGrain; i <= (at + size - 1 - region.begin) / kGrain; ++i)
      watch(region.grains[i], now, write, read, "global memory");
    return;
  }
  const auto begin = reinterpret_cast<uintptr_t>(__bss_start), end = reinterpret_cast<uintptr_t>(_end);
  if (at < begin || at + size > end) fail(write ? "a write out of bounds" : "a read out of bounds");
  for (size_t i = (at - begin) / kGrain; i <= (at + size - 1 - begin) / kGrain; ++i) {
    Grain& grain = shared_memory[i];
    // Shared memory of a new block is uninitialized.
    if (grain.write.launch != launch_number || grain.write.block != block_number) grain = {};
    watch(grain, now, write, read, "shared memory");
  }
}

// Releases lanes of a warp that wait for each other, once all of them have arrived.
bool resolve_meetings(unsigned warp, unsigned threads) {
  bool progress = false;
  for (unsigned lane = 0; lane < kLanes && warp * kLanes + lane < threads; ++lane) {
    Fiber& first = *fibers[warp * kLanes + lane];
    if (first.state != State::at_meeting) continue;
    bool complete = true;
    for (unsigned other = 0; other < kLanes; ++other) {
      if ((first.mask >> other & 1) == 0) continue;
      const unsigned thread = warp * kLanes + other;
      if (thread >= threads) fail("the mask of a warp's operation holds a lane that does not exist");
      const Fiber& fiber = *fibers[thread];
      if (fiber.state == State::done) fail("the mask of a warp's operation holds a lane that has returned");
      if (fiber.state != State::at_meeting) complete = false;
      if (fiber.state == State::at_meeting && (fiber.mask != first.mask || fiber.kind != first.kind))
        complete = false;
    }
    if (!complete) continue;
    uint64_t values[kLanes] = {};
    for (unsigned other = 0; other < kLanes; ++other)
      if ((first.mask >> other & 1) != 0) values[other] = fibers[warp * kLanes + other]->value;
    if (first.kind == Collective::barrier && first.mask == 0xffffffffu) ++warp_phases[warp];
    const unsigned mask = first.mask;
    for (unsigned other = 0; other < kLanes; ++other) {
      if ((mask >> other & 1) == 0) continue;
      Fiber& fiber = *fibers[warp * kLanes + other];
      std::copy(values, values + kLanes, fiber.values);
      fiber.state = State::ready;
    }
    progress = true;
  }
  return progress;
}

void run_block(unsigned threads) {
  std::vector<unsigned> order(threads);
  std::iota(order.begin(), order.end(), 0u);
  warp_phases.assign((threads + kLanes - 1) / kLanes, 0);
  block_phase = 0;
  for (unsigned thread = 0; thread < threads; ++thread) {
    fibers[thread]->state = State::ready;
    fibers[thread]->started = false;
    start(*fibers[thread]);
  }
  for (;;) {
    if (seed != 0) std::shuffle(order.begin(), order.end(), random_numbers);
    bool progress = false;
    for (const unsigned thread : order) {
      if (fibers[thread]->state != State::ready) continue;
      resume(thread);
      if (!error.empty()) return;
      progress = true;
    }
    for (unsigned warp = 0; warp < warp_phases.size(); ++warp) {
      progress = resolve_meetings(warp, threads) || progress;
      if (!error.empty()) return;
    }
    const auto count = [&](State state) {
      return std::count_if(order.begin(), order.end(), [&](unsigned t) { return fibers[t]->state == state; });
    };
    const auto done = count(State::done), waiting = count(State::at_block_barrier);
    if (done == threads) return;
    if (waiting > 0 && waiting + done == threads) {
      if (done > 0) fail("threads of a block wait at __syncthreads for some that have returned");
      for (const unsigned thread : order) fibers[thread]->state = State::ready;
      ++block_phase;
      progress = true;
    }
    if (!progress) fail("threads wait for each other: some do not reach a barrier or a shuffle");
    if (!error.empty()) return;
  }
}

}  // namespace

void fail(const char* message) {
  if (error.empty()) error = message + where();
  if (running != nullptr) _longjmp(scheduler, 1);
}

void meet(unsigned mask, Collective kind, uint64_t value, uint64_t (&values)[32]) {
  if ((mask >> (indices.thread.x % kLanes) & 1) == 0) fail("a lane is not in the mask of its own operation");
  Fiber& self = *running;
  self.mask = mask;
  self.kind = kind;
  self.value = value;
  self.values = values;
  self.state = State::at_meeting;
  leave();
}

void synchronize_block() {
  running->state = State::at_block_barrier;
  leave();
}

void access_atomically(void* at, size_t size) { access(at, size, true, true, true); }

void run(Dim grid, unsigned threads, void (*body)(void*), void* context, size_t context_size) {
  if (!error.empty()) return;
  ++launch_number;
  indices.blocks = grid;
  indices.threads = {threads, 1, 1};
  thread_body = body;
  thread_context = context;
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  shared_memory.resize((_end - __bss_start) / kGrain + 1);
  const auto address = reinterpret_cast<uintptr_t>(context);
  regions.push_back({address, address + context_size, false, true, {}});
  std::vector<unsigned> blocks(grid.x * grid.y * grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (seed != 0) std::shuffle(blocks.begin(), blocks.end(), random_numbers);
  for (const unsigned block : blocks) {
    block_number = block;
    indices.block = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    run_block(threads);
    if (!error.empty()) break;
  }
  regions.pop_back();
}

}  // namespace cuda_on_host

using namespace cuda_on_host;

// Clears the tensors and errors of the last call. With a seed other than 0, blocks and threads run in random
// order.
extern "C" void host_begin(unsigned order_seed) {
  regions.clear();
  error.clear();
  first_launch = launch_number;
  seed = order_seed;
  random_numbers.seed(order_seed);
}

// Registers memory that kernels may access. Uninitialized memory must be written before it is read.
extern "C" void host_tensor(const void* data, size_t size, bool writable, bool initialized) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  Grain grain;
  grain.written = initialized;
  regions.push_back({begin, begin + size, writable, initialized,
                     std::vector<Grain>(writable ? (size + kGrain - 1) / kGrain : 0, grain)});
}

extern "C" const char* host_error() { return error.c_str(); }

// Functions called by -fsanitize=thread.
#define CUDA_ON_HOST_ACCESS(size)                                                                 \
  extern "C" void __tsan_read##size(void* at) { access(at, size, false, true, false); }           \
  extern "C" void __tsan_write##size(void* at) { access(at, size, true, false, false); }          \
  extern "C" void __tsan_unaligned_read##size(void* at) { access(at, size, false, true, false); } \
  extern "C" void __tsan_unaligned_write##size(void* at) { access(at, size, true, false, false); }
CUDA_ON_HOST_ACCESS(1)
CUDA_ON_HOST_ACCESS(2)
CUDA_ON_HOST_ACCESS(4)
CUDA_ON_HOST_ACCESS(8)
CUDA_ON_HOST_ACCESS(16)
extern "C" void __tsan_read_range(void* at, size_t size) { access(at, size, false, true, false); }
extern "C" void __tsan_write_range(void* at, size_t size) { access(at, size, true, false, false); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit(void*) {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_vptr_read(void*) {}

// Functions called by -fsanitize=undefined; the first argument of each is the position in the source.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};

static void undefined(const SourceLocation* at) {
  fail(("undefined behavior at " + std::string(at->file) + ":" + std::to_string(at->line)).c_str());
  std::fputs((error + "\n").c_str(), stderr);  // outside kernels, there is no scheduler to return to
  std::abort();
}

#define CUDA_ON_HOST_UNDEFINED(name) \
  extern "C" void __ubsan_handle_##name##_abort(const SourceLocation* at) { undefined(at); }
CUDA_ON_HOST_UNDEFINED(add_overflow)
CUDA_ON_HOST_UNDEFINED(sub_overflow)
CUDA_ON_HOST_UNDEFINED(mul_overflow)
CUDA_ON_HOST_UNDEFINED(negate_overflow)
CUDA_ON_HOST_UNDEFINED(divrem_overflow)
CUDA_ON_HOST_UNDEFINED(float_cast_overflow)
CUDA_ON_HOST_UNDEFINED(load_invalid_value)
CUDA_ON_HOST_UNDEFINED(nonnull_arg)
CUDA_ON_HOST_UNDEFINED(out_of_bounds)
CUDA_ON_HOST_UNDEFINED(pointer_overflow)
CUDA_ON_HOST_UNDEFINED(shift_out_of_bounds)
CUDA_ON_HOST_UNDEFINED(type_mismatch_v1)
CUDA_ON_HOST_UNDEFINED(builtin_unreachable)
