// Small kernels, right and wrong, for the tests of the emulator.

extern "C" __global__ void number_threads(i64* to) {
    i64 block = blockIdx.x + (i64)gridDim.x * (blockIdx.y + (i64)gridDim.y * blockIdx.z);
    to[block * blockDim.x + threadIdx.x] = block * 1000 + threadIdx.x;
}

extern "C" __global__ void reverse(const float* x, float* y, i64 waits) {
    __shared__ float row[64];
    row[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    if (waits) __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = row[63 - threadIdx.x];
}

extern "C" __global__ void shuffles(int* to) {
    int lane = threadIdx.x;
    to[lane] = __shfl_xor_sync(ALL, lane, 5);
    to[32 + lane] = __shfl_down_sync(ALL, lane, 3, 8);
    to[64 + lane] = __shfl_up_sync(ALL, lane, 1);
    to[96 + lane] = __shfl_sync(0xffu << (lane / 8 * 8), lane, 2, 8);
    to[128 + lane] = __popc(__ballot_sync(ALL, lane % 3 == 0));
}

extern "C" __global__ void product(const unsigned* a, const unsigned* b, float* to) {
    int row = threadIdx.x / 4, pair = threadIdx.x % 4;
    float d[4] = {};
    mma(d, {a[row * 8 + pair], a[row * 8 + 64 + pair], a[row * 8 + pair + 4], a[row * 8 + 64 + pair + 4]},
        b[row * 8 + pair], b[row * 8 + pair + 4]);
    for (int i = 0; i < 4; i++) to[(row + i / 2 * 8) * 8 + pair * 2 + i % 2] = d[i];
}

extern "C" __global__ void round_trip(const float* x, io_t* narrow, float* wide, float* powers) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    narrow[i] = from_float(x[i]);
    wide[i] = to_float(narrow[i]);
    powers[i] = ex2(x[i]);
}

// Three rows of 64 come one after the other into the same place.
struct Landing {
    u64 full, empty;
    __align__(128) float row[64];
};
extern "C" __global__ void fetch(const float* x, float* y, i64 waits_for_row, i64 waits_for_room, i64 announced) {
    extern __shared__ __align__(128) unsigned char memory[];
    Landing& s = *(Landing*)memory;
    if (threadIdx.x == 0) barrier_init(&s.full, 1), barrier_init(&s.empty, 2), barrier_fence();
    __syncthreads();
    for (int i = 0; i < 3; i++) {
        if (threadIdx.x == 0) {
            if (waits_for_room) barrier_wait(&s.empty, i % 2 ^ 1);
            barrier_expect(&s.full, (unsigned)announced);
            bulk_copy(s.row, x + i * 64, 256, &s.full);
        }
        if (waits_for_row) barrier_wait(&s.full, i % 2);
        else __syncthreads();
        y[i * 64 + threadIdx.x] = s.row[threadIdx.x];
        barrier_wait(&s.full, i % 2);
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(&s.empty);
    }
}

// All blocks send each other a number and add up those of all, again and again; each says when it has read them.
__device__ __forceinline__ u64 receive(const u64* place, unsigned tag, bool second) {
    u64 a, b;
    while (get(place, a, b), (unsigned)((second ? b : a) >> 32) != tag) look_again();
    return a;
}
// Two groups of copies by every thread, of which the last `valid` threads copy zeros, read by their neighbours.
extern "C" __global__ void copy_by_thread(const float* x, float* y, i64 valid, i64 awaits, i64 meets) {
    extern __shared__ __align__(16) unsigned char memory[];
    auto row = (float (*)[64])memory;
    int i = threadIdx.x;
    for (int group = 0; group < 2; group++) {
        copy_later<4>(&row[group][i], x + group * 64 + i, i < valid);  // asked for
        end_group();
    }
    if (awaits) await_groups<0>();
    else await_groups<1>();
    if (meets) __syncthreads();
    for (int group = 0; group < 2; group++) y[group * 64 + i] = row[group][63 - i];  // read
}

extern "C" __global__ void gather(u64* mail, float* sums, i64 rounds, i64 waits_for_readers) {
    for (unsigned round = 1; round <= rounds; round++) {
        if (threadIdx.x == 0) {
            for (int i = 0; i < gridDim.x && waits_for_readers; i++) receive(mail + 2 * i, round - 1, true);
            put(mail + 2 * blockIdx.x, __float_as_uint(round * 10.f + blockIdx.x), round);
        }
        float sum = 0.f;
        for (int i = 0; i < gridDim.x; i++)
            sum += __uint_as_float((unsigned)receive(mail + 2 * i, round, false));
        sums[(blockIdx.x * rounds + round - 1) * 32 + threadIdx.x] = sum;
        block_sync(1, 32);
        if (threadIdx.x == 0) put(mail + 2 * blockIdx.x + 1, 0, round);
    }
}

// Who reads the same again and again, although nothing new can come, does not wait for anything.
extern "C" __global__ void read_again(const u64* mail, u64* to, i64 times) {
    u64 a, b, sum = 0;
    for (i64 i = 0; i < times; i++) get(mail, a, b), sum += a;
    *to = sum;
}

// A number by mail and another in plain memory: nothing says that who has the one can see the other.
extern "C" __global__ void announce(u64* mail, u64* number, u64* to, i64 also_by_mail) {
    if (blockIdx.x == 0) {
        if (also_by_mail) put(number, 5, 0);
        else *number = 5;
        put(mail, 0, 1);
    } else {
        receive(mail, 1, false);
        u64 a, b;
        if (also_by_mail) get(number, a, b), *to = a;
        else *to = *number;
    }
}

extern "C" __global__ void count(int* total) { atomicAdd(total, 1); }

extern "C" __global__ void part_ways(i64 how, const u64* mail) {
    int thread = threadIdx.x;
    if (how == 0 && thread == 5) receive(mail, 1, false);
    if (how == 1 && thread < 32) block_sync(2, 96);
    if (how == 2 && thread >= 8 && thread < 16) __syncwarp(0xff00u);
    if (how == 2 && thread < 8) __syncwarp(0xffffu);
    __syncthreads();  // last
}

extern "C" __global__ void spin(volatile int* forever) {
    while (*forever) {}
}

// One thing wrong each.
extern "C" __global__ void wrong(i64 what, float* x) {
    extern __shared__ __align__(128) unsigned char memory[];
    float own[4] = {1.f, 2.f, 3.f, 4.f};
    u64* barrier = (u64*)memory;
    if (threadIdx.x != 0) return;
    if (what == 0) x[0] = own[what + x[1] > 0.f ? 7 : 0];
    if (what == 1) *(float4*)(x + 1) = float4();
    if (what == 2) memory[1 << 14] = 1;
    if (what == 3) memory[160] = 1;
    if (what == 4) barrier_arrive(barrier);
    if (what == 5) barrier_init(barrier, 1), *barrier = 0, barrier_arrive(barrier);
    if (what == 6) barrier_init(barrier, 2), barrier_expect(barrier, 16), bulk_copy(memory + 16, x, 16, barrier);
    if (what == 7) barrier_init(barrier, 1), bulk_copy(memory + 8, x, 16, barrier);
    if (what == 8) barrier_init(barrier, 1), bulk_copy(memory + 144, x, 32, barrier);
    if (what == 9) x[64] = 1.f;
    if (what == 10) x[0] = __shfl_sync(2u, x[0], 1);
}
