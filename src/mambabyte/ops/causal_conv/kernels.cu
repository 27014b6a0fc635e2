// Depthwise causal convolution, y_t = act(bias + sum_w weight_w x_(t-W+1+w)), its gradients, and one position of it.
//
// A thread holds four neighbouring channels and slides over ROWS rows, the last WIDTH - 1 inputs in registers, so that
// memory is read once but for the rows where two threads' stretches of time meet. READ rows are fetched at a time,
// ahead of the arithmetic. A reset empties the window; the state that is handed on is the window.
//
// From the host: IO, WIDTH, SILU, RESETS, ALIGNED, ROWS, READ.

constexpr int PAST = WIDTH - 1;
static_assert(READ <= 32, "a warp reads the marks of READ rows at once");

struct Channels {  // this thread's four channels
    i64 first;
    int valid;
    __device__ Channels(i64 E) {
        first = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * 4;
        valid = first >= E ? 0 : ALIGNED ? 4 : (int)min(4ll, E - first);
    }
};

struct Taps {
    float4 weight[WIDTH], bias;
    __device__ Taps(const float* w, const float* b, const Channels& me) {
#pragma unroll
        for (int c = 0; c < 4; c++)
#pragma unroll
            for (int k = 0; k < WIDTH; k++) at(weight[k], c) = c < me.valid ? w[(me.first + c) * WIDTH + k] : 0.f;
        bias = load_floats(b == nullptr ? nullptr : b + me.first, me.valid, 0.f);
    }
};

__device__ __forceinline__ float4 multiply_add(float4 a, float4 b, float4 c) {
    return make_float4(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w));
}
// d silu(v) / dv
__device__ __forceinline__ float silu_slope(float v) {
    float open = sigmoid(v);
    return open * fmaf(v, 1.f - open, 1.f);
}

struct Window {  // the last PAST inputs, oldest first
    float4 x[WIDTH];

    __device__ __forceinline__ void empty() {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) x[k] = float4();
    }
    __device__ __forceinline__ void push(float4 now) {
#pragma unroll
        for (int k = 0; k < PAST; k++) x[k] = x[k + 1];
        x[PAST] = now;
    }
    // With the newest input at x[PAST].
    __device__ __forceinline__ float4 convolve(const Taps& taps) const {
        float4 sum = taps.bias;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum = multiply_add(taps.weight[k], x[k], sum);
        return sum;
    }
};

struct Input {
    const io_t *x, *state;  // of this sequence and these channels; state (WIDTH - 1, E) or null
    const unsigned char* resets;
    i64 row_stride, E;

    __device__ __forceinline__ io4 read(i64 t, const Channels& me) const {
        return load4<ALIGNED>(x + t * row_stride, me.valid);
    }
    // The window before row t0, whose newest input is at x[PAST].
    __device__ __forceinline__ void recall(Window& window, i64 t0, const Channels& me) const {
        window.empty();
#pragma unroll
        for (int k = 0; k < PAST; k++) {
            i64 t = t0 - PAST + k;
            if (RESETS && t >= 0 && resets[t]) window.empty();
            io4 v = io4();
            if (t >= 0) v = read(t, me);
            else if (state != nullptr) v = load4<ALIGNED>(state + (t + PAST) * E, me.valid);
            window.push(unpack(v));
        }
    }
};

struct Stream {  // READ rows at a time, the next ones on their way
    const io_t* p;
    int row_stride;
    io4 next[READ];

    __device__ __forceinline__ Stream(const Input& in, i64 t0)
        : p(in.x + t0 * in.row_stride), row_stride((int)in.row_stride) {}
    __device__ __forceinline__ void fetch(i64 rows, const Channels& me) {
        if (rows >= READ) {
#pragma unroll
            for (int r = 0; r < READ; r++) next[r] = load4<ALIGNED>(p + r * row_stride, me.valid);
        } else {
#pragma unroll
            for (int r = 0; r < READ; r++) next[r] = r < rows ? load4<ALIGNED>(p + r * row_stride, me.valid) : io4();
        }
        p += READ * row_stride;
    }
    __device__ __forceinline__ void take(io4 (&now)[READ], i64 rows_after, const Channels& me) {
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

    __device__ __forceinline__ void fetch(i64 rows) {
        if (!RESETS) return;
        int lane = threadIdx.x % 32;
        next = lane < READ && lane < rows ? p[lane] : 0;
        p += READ;
    }
    __device__ __forceinline__ unsigned take(i64 rows_after) {
        if (!RESETS) return 0;
        unsigned now = __ballot_sync(ALL, next);
        fetch(rows_after);
        return now;
    }
};

// visit(r) for the rows of a batch that exist; a whole batch, the common case, without a branch between rows.
template <class Visit>
__device__ __forceinline__ void each_row(i64 rows, Visit visit) {
    if (rows >= READ) {
#pragma unroll
        for (int r = 0; r < READ; r++) visit(r);
    } else {
#pragma unroll
        for (int r = 0; r < READ; r++)
            if (r < rows) visit(r);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    conv_forward(const io_t* x, i64 x_batch, i64 x_row, const float* weight, const float* bias, const io_t* state,
                 const unsigned char* resets, io_t* y, io_t* last, i64 L, i64 E, i64 stretches) {
    i64 b = blockIdx.x / stretches, t0 = blockIdx.x % stretches * ROWS, end = min(L, t0 + ROWS);
    Channels me(E);
    if (!RESETS && me.valid == 0) return;  // with resets all lanes of a warp read marks
    Input in{x + b * x_batch + me.first, state == nullptr ? nullptr : state + b * PAST * E + me.first, resets + b * L,
             x_row, E};
    Stream stream(in, t0);
    Marks marks{in.resets + t0};
    stream.fetch(end - t0, me), marks.fetch(end - t0);
    Taps taps(weight, bias, me);
    Window window;
    in.recall(window, t0, me);
    io_t* to = y + (b * L + t0) * E + me.first;
    for (i64 t = t0; t < end; t += READ, to += READ * E) {
        io4 now[READ];
        stream.take(now, end - t - READ, me);
        unsigned starts = marks.take(end - t - READ);
        each_row(end - t, [&](int r) {
            if (RESETS && starts >> r & 1) window.empty();
            window.push(unpack(now[r]));
            float4 out = window.convolve(taps);
            if (SILU) out = make_float4(silu(out.x), silu(out.y), silu(out.z), silu(out.w));
            store4<ALIGNED>(to + r * (int)E, me.valid, out);
        });
    }
    if (end < L) return;
#pragma unroll
    for (int k = 0; k < PAST; k++) store4<ALIGNED>(last + (b * PAST + k) * E + me.first, me.valid, window.x[k + 1]);
}

// dx_t collects from rows t .. t + WIDTH - 1, so a stretch also visits the PAST rows after it. pending[j] is dx of row
// t - PAST + j. partial (B * stretches, WIDTH + 1, E): the stretch's sums for dweight and, last, dbias.
extern "C" __global__ void __launch_bounds__(THREADS)
    conv_backward(const io_t* x, i64 x_batch, i64 x_row, const float* weight, const float* bias, const io_t* state,
                  const unsigned char* resets, const io_t* dy, i64 dy_batch, i64 dy_row, const io_t* dlast, io_t* dx,
                  i64 dx_batch, i64 dx_row, io_t* dstate, float* partial, i64 L, i64 E, i64 stretches) {
    i64 b = blockIdx.x / stretches, t0 = blockIdx.x % stretches * ROWS, end = min(L, t0 + ROWS),
        visited = min(L, end + PAST);
    Channels me(E);
    if (!RESETS && me.valid == 0) return;  // with resets all lanes of a warp read marks
    Input in{x + b * x_batch + me.first, state == nullptr ? nullptr : state + b * PAST * E + me.first, resets + b * L,
             x_row, E};
    Input out{dy + b * dy_batch + me.first, nullptr, nullptr, dy_row, E};
    Taps taps(weight, bias, me);
    Window window, pending;
    in.recall(window, t0, me);
    pending.empty();
    float4 dweight[WIDTH], dbias = float4();
#pragma unroll
    for (int k = 0; k < WIDTH; k++) dweight[k] = float4();
    int alive = PAST;  // rows back that still belong to the document of row t; those before t0 are another stretch's
    io_t* to = dx + b * dx_batch + t0 * dx_row + me.first;
    auto give = [&](i64 t, float4 value) {  // the gradient of input t, which may lie in the initial state
        if (t >= t0 && t < end) store4<ALIGNED>(to + (int)(t - t0) * (int)dx_row, me.valid, value);
        else if (t < 0 && t0 == 0 && dstate != nullptr)
            store4<ALIGNED>(dstate + (b * PAST + t + PAST) * E + me.first, me.valid, value);
    };
    Stream xs(in, t0), dys(out, t0);
    Marks marks{in.resets + t0};
    xs.fetch(visited - t0, me), dys.fetch(visited - t0, me), marks.fetch(visited - t0);
    for (i64 t = t0; t < visited; t += READ) {
        io4 now_x[READ], now_dy[READ];
        xs.take(now_x, visited - t - READ, me), dys.take(now_dy, visited - t - READ, me);
        unsigned starts = marks.take(visited - t - READ);
        each_row(visited - t, [&](int r) {
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
            if (t + r < end) {
                dbias = make_float4(dbias.x + d.x, dbias.y + d.y, dbias.z + d.z, dbias.w + d.w);
#pragma unroll
                for (int k = 0; k < WIDTH; k++) dweight[k] = multiply_add(d, window.x[k], dweight[k]);
            }
            if (RESETS) alive = min(alive + 1, PAST);
            give(t + r - PAST, pending.x[0]);
        });
    }
    if (visited == L) {  // the last PAST inputs also go to the final state, if they belong to the last document
        int reach = RESETS ? alive : PAST;  // how many rows back from L belong to it
#pragma unroll
        for (int k = 0; k < PAST; k++) {
            float4 value = pending.x[k + 1];
            if (dlast != nullptr && PAST - k <= reach) {
                float4 more = unpack(load4<ALIGNED>(dlast + (b * PAST + k) * E + me.first, me.valid));
                value = make_float4(value.x + more.x, value.y + more.y, value.z + more.z, value.w + more.w);
            }
            give(L - PAST + k, value);
        }
    }
    float* sums = partial + (i64)blockIdx.x * (WIDTH + 1) * E + me.first;
#pragma unroll
    for (int k = 0; k < WIDTH; k++) store_floats(sums + k * E, me.valid, dweight[k]);
    store_floats(sums + PAST * E + E, me.valid, dbias);
}

// One position of many sequences; state (B, WIDTH - 1, E) slides on where it lies.
extern "C" __global__ void __launch_bounds__(THREADS)
    conv_step(io_t* state, i64 state_batch, i64 state_row, const io_t* x, i64 x_batch, const float* weight,
              const float* bias, io_t* y, i64 E) {
    i64 b = blockIdx.x;
    Channels me(E);
    if (me.valid == 0) return;
    Taps taps(weight, bias, me);
    Window window;
    window.empty();
#pragma unroll
    for (int k = 0; k < PAST; k++)
        window.push(unpack(load4<ALIGNED>(state + b * state_batch + k * state_row + me.first, me.valid)));
    window.push(unpack(load4<ALIGNED>(x + b * x_batch + me.first, me.valid)));
    float4 out = window.convolve(taps);
    if (SILU) out = make_float4(silu(out.x), silu(out.y), silu(out.z), silu(out.w));
    store4<ALIGNED>(y + b * E + me.first, me.valid, out);
#pragma unroll
    for (int k = 0; k < PAST; k++)
        store4<ALIGNED>(state + b * state_batch + k * state_row + me.first, me.valid, window.x[k + 1]);
}
