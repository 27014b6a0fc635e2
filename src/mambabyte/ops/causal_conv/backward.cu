// Gradients of the convolution. A thread slides over a stretch of ROWS rows; READ rows of x and dy are fetched at a time,
// ahead of the arithmetic. Blocks follow each other through channels, then time.
//
// From the host, beside what window.cuh takes: ROWS, READ, MIN_BLOCKS.

static_assert(READ <= 32, "a warp reads the marks of READ rows at once");

// d silu(v) / dv
__device__ __forceinline__ float silu_slope(float v) {
    float open = sigmoid(v);
    return open * fmaf(v, 1.f - open, 1.f);
}

struct Stream {  // READ rows at a time, the next ones on their way
    const io_t* p;
    int row_stride;
    io4 next[READ];

    __device__ __forceinline__ Stream(const Input& in, i64 t0)
        : p(in.x + t0 * in.x_row), row_stride((int)in.x_row) {}
    __device__ __forceinline__ void fetch(int rows, const Channels& me) {
        if (rows >= READ) {
#pragma unroll
            for (int r = 0; r < READ; r++) next[r] = load4<ALIGNED>(p + r * row_stride, me.valid);
        } else {
#pragma unroll
            for (int r = 0; r < READ; r++) next[r] = r < rows ? load4<ALIGNED>(p + r * row_stride, me.valid) : io4();
        }
        p += READ * row_stride;
    }
    __device__ __forceinline__ void take(io4 (&now)[READ], int rows_after, const Channels& me) {
#pragma unroll
        for (int r = 0; r < READ; r++) now[r] = next[r];
        fetch(rows_after, me);
    }
};

// Which of READ rows start a document, a bit a row, for the whole warp: each lane reads the mark of one row, ahead of
// time.
struct Marks {
    const unsigned char* p;
    unsigned char next;

    __device__ __forceinline__ void fetch(int rows) {
        if (!RESETS) return;
        int lane = threadIdx.x % 32;
        next = lane < READ && lane < rows ? p[lane] : 0;
        p += READ;
    }
    __device__ __forceinline__ unsigned take(int rows_after) {
        if (!RESETS) return 0;
        unsigned now = __ballot_sync(ALL, next);
        fetch(rows_after);
        return now;
    }
};

// visit(r) for the rows of a batch that exist; a whole batch, the common case, without a branch between rows.
template <class Visit>
__device__ __forceinline__ void each_row(int rows, Visit visit) {
    if (rows >= READ) {
#pragma unroll
        for (int r = 0; r < READ; r++) visit(r);
    } else {
#pragma unroll
        for (int r = 0; r < READ; r++)
            if (r < rows) visit(r);
    }
}

// dx_t collects from rows t .. t + WIDTH - 1, so a stretch also visits the PAST rows after it. pending[j] is dx of row
// t - PAST + j. partial (B * stretches, WIDTH + 1, CHANNELS): the stretch's sums for dweight and, last, dbias.
extern "C" __global__ void __launch_bounds__(LANES, MIN_BLOCKS)
    conv_backward(const io_t* x, i64 x_batch, i64 x_row, const float* weight, const float* bias, const io_t* state,
                  const unsigned char* resets, const io_t* dy, i64 dy_batch, i64 dy_row, const io_t* dlast, io_t* dx,
                  i64 dx_batch, i64 dx_row, io_t* dstate, float* partial, i64 L, i64 stretches) {
    unsigned stretch = blockIdx.x / COLUMNS;
    i64 b = stretch / (unsigned)stretches, t0 = (i64)(stretch % (unsigned)stretches) * ROWS;
    int visited = (int)min((i64)(ROWS + PAST), L - t0);
    Channels me(blockIdx.x % COLUMNS);
    if (!RESETS && me.valid == 0) return;  // with resets all lanes of a warp read marks
    Input in{x + b * x_batch + me.first, state == nullptr ? nullptr : state + b * PAST * CHANNELS + me.first,
             resets + b * L, x_row, CHANNELS};
    Input out{dy + b * dy_batch + me.first, nullptr, nullptr, dy_row, 0};
    Taps taps;
    Window window, pending;
    taps.load(weight, bias, me);
    in.recall(window, t0, me);
    pending.empty();
    float4 dweight[WIDTH], dbias = float4();
#pragma unroll
    for (int k = 0; k < WIDTH; k++) dweight[k] = float4();
    int alive = PAST;  // rows back that still belong to the document of row t; those before t0 are another stretch's
    io_t* to = dx + b * dx_batch + t0 * dx_row + me.first;
    auto give = [&](int row, float4 value) {  // the gradient of this input, which may lie in the initial state
        if (row >= 0 && row < ROWS) store4<ALIGNED>(to + row * (int)dx_row, me.valid, value);
        else if (row < 0 && t0 == 0 && dstate != nullptr)
            store4<ALIGNED>(dstate + (b * PAST + row + PAST) * CHANNELS + me.first, me.valid, value);
    };
    Stream xs(in, t0), dys(out, t0);
    Marks marks{in.resets + t0};
    xs.fetch(visited, me), dys.fetch(visited, me), marks.fetch(visited);
    for (int row = 0; row < visited; row += READ) {
        io4 now_x[READ], now_dy[READ];
        xs.take(now_x, visited - row - READ, me), dys.take(now_dy, visited - row - READ, me);
        unsigned starts = marks.take(visited - row - READ);
        each_row(visited - row, [&](int r) {
            if (RESETS && starts >> r & 1) window.empty(), alive = 0;
            window.push(unpack(now_x[r]));
            float4 d = unpack(now_dy[r]);
            if (SILU) {
                float4 v = window.convolve(taps);
                d = make_float4(d.x * silu_slope(v.x), d.y * silu_slope(v.y), d.z * silu_slope(v.z),
                                d.w * silu_slope(v.w));
            }
            pending.push(float4());
#pragma unroll
            for (int k = 0; k < WIDTH; k++)
                if (!RESETS || PAST - k <= alive) pending.x[k] = multiply_add(taps.weight[k], d, pending.x[k]);
            if (row + r < ROWS) {
                dbias = make_float4(dbias.x + d.x, dbias.y + d.y, dbias.z + d.z, dbias.w + d.w);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) dweight[k] = multiply_add(d, window.x[k], dweight[k]);
            }
            if (RESETS) alive = min(alive + 1, PAST);
            give(row + r - PAST, pending.x[0]);
        });
    }
    if (t0 + visited == L) {  // the last PAST inputs also go to the final state, if they belong to the last document
        int reach = RESETS ? alive : PAST;  // how many rows back from L belong to it
#pragma unroll
        for (int k = 0; k < PAST; k++) {
            float4 value = pending.x[k + 1];
            if (dlast != nullptr && PAST - k <= reach) {
                float4 more = unpack(load4<ALIGNED>(dlast + (b * PAST + k) * CHANNELS + me.first, me.valid));
                value = make_float4(value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w);
            }
            give(visited - PAST + k, value);
        }
    }
    float* sums = partial + (i64)stretch * (WIDTH + 1) * CHANNELS + me.first;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) store_floats(sums + k * CHANNELS, me.valid, dweight[k]);
    store_floats(sums + WIDTH * CHANNELS, me.valid, dbias);
}
