// The convolution forward. A thread asks for ROWS rows and the WIDTH - 1 before them at once, computes, stores, ends:
// other blocks work while it waits. A block has LANES neighbours in channels of each of SLICES neighbours in time, whose
// common rows its cache holds; blocks follow each other through channels, then time, so that the GPU sweeps memory
// from front to back.
//
// From the host, beside what window.cuh takes: X_ROW, the row stride of x, which like CHANNELS is a constant because two
// out of ten instructions would otherwise compute addresses; SLICES, ROWS, MIN_BLOCKS.

static_assert(ROWS <= 32 && (ROWS & (ROWS - 1)) == 0, "a power of two, of whose marks a lane has each one");
static_assert(LANES % 32 == 0, "the lanes of a warp have the same rows");

struct Stretch {
    const Channels& me;
    const io_t* from;
    io_t* to;
    unsigned starts;  // which of the next rows start a document, a bit a row
    Taps taps;
    Window window;

    template <int N>
    __device__ __forceinline__ void fetch(io4 (&rows)[N]) const {
#pragma unroll
        for (int r = 0; r < N; r++) rows[r] = load4<ALIGNED>(from + r * X_ROW, me.valid);
    }
    template <int N>
    __device__ __forceinline__ void walk(const io4 (&rows)[N]) {
#pragma unroll
        for (int r = 0; r < N; r++) {
            if (RESETS && starts >> r & 1) window.empty();
            window.push(unpack(rows[r]));
            store4<ALIGNED>(to + r * CHANNELS, me.valid, activation(window.convolve(taps)));
        }
        from += N * X_ROW, to += N * CHANNELS, starts >>= N;
    }
    // Fewer than 2 N rows, by powers of two: code that whole stretches share would cost them registers.
    template <int N>
    __device__ __forceinline__ void walk_remaining(int rows) {
        if constexpr (N > 0) {
            if (rows & N) {
                io4 some[N];
                fetch(some), walk(some);
            }
            walk_remaining<N / 2>(rows);
        }
    }
};

// The stretch after the last one writes what the next part of the sequence begins with.
__device__ __forceinline__ void hand_on(io_t* last, const Input& in, i64 L, const Channels& me) {
    Window window;
    in.recall(window, L, me);
#pragma unroll
    for (int k = 0; k < PAST; k++) store4<ALIGNED>(last + k * CHANNELS, me.valid, window.x[k + 1]);
}

extern "C" __global__ void __launch_bounds__(LANES* SLICES, MIN_BLOCKS)
    conv_forward(const io_t* x, i64 x_batch, const float* weight, const float* bias, const io_t* state,
                 const unsigned char* resets, io_t* y, io_t* last, i64 L, i64 stretches) {
    unsigned mine = blockIdx.x / COLUMNS * SLICES + threadIdx.x / LANES;
    i64 b = mine / (unsigned)stretches, t0 = (i64)(mine % (unsigned)stretches) * ROWS;
    Channels me(blockIdx.x % COLUMNS);
    if (t0 >= L + ROWS || (!RESETS && me.valid == 0)) return;  // with resets all lanes of a warp read marks
    Input in{x + b * x_batch + me.first, state == nullptr ? nullptr : state + b * PAST * CHANNELS + me.first,
             resets + b * L, X_ROW, CHANNELS};
    if (t0 >= L) return hand_on(last + b * PAST * CHANNELS + me.first, in, L, me);
    int rows = (int)min((i64)ROWS, L - t0), lane = threadIdx.x % 32;
    unsigned starts = RESETS ? __ballot_sync(ALL, lane < rows && in.resets[t0 + lane]) : 0;
    Stretch stretch{me, in.x + t0 * X_ROW, y + (b * L + t0) * CHANNELS + me.first, starts};
    if (rows == ROWS) {
        io4 all[ROWS];
        stretch.fetch(all);
        stretch.taps.load(weight, bias, me), in.recall(stretch.window, t0, me);
        stretch.walk(all);
    } else {
        stretch.taps.load(weight, bias, me), in.recall(stretch.window, t0, me);
        stretch.walk_remaining<ROWS / 2>(rows);
    }
}
