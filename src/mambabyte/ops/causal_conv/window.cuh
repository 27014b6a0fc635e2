// Depthwise causal convolution, y_t = act(bias + sum_w weight_w x_(t-W+1+w)): a thread holds four neighbouring channels
// and their last WIDTH - 1 inputs in registers. A reset empties this window; the state that is handed on is the window.
//
// From the host: IO, WIDTH, SILU, RESETS, ALIGNED, CHANNELS, and LANES, the threads that share a row in a block.
#pragma once

constexpr int PAST = WIDTH - 1;
constexpr unsigned COLUMNS = (CHANNELS + 4 * LANES - 1) / (4 * LANES);  // blocks side by side in a row

struct Channels {  // this thread's four channels
    i64 first;
    int valid;
    __device__ __forceinline__ Channels(unsigned column) : first(((i64)column * LANES + threadIdx.x % LANES) * 4) {
        valid = first >= CHANNELS ? 0 : ALIGNED ? 4 : (int)min(4ll, CHANNELS - first);
    }
};

struct Taps {
    float4 weight[WIDTH], bias;
    // By quads where channels lie in quads: lanes are 16 WIDTH bytes apart, so that a load touches many lines of memory.
    __device__ __forceinline__ void load(const float* w, const float* b, const Channels& me) {
        w += me.first * WIDTH;
        if (ALIGNED) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                float4 v = me.valid ? __ldg((const float4*)w + i) : float4();
#pragma unroll
                for (int c = 0; c < 4; c++) of(4 * i + c) = at(v, c);
            }
            bias = b != nullptr && me.valid ? __ldg((const float4*)(b + me.first)) : float4();
        } else {
#pragma unroll
            for (int i = 0; i < 4 * WIDTH; i++) of(i) = i / WIDTH < me.valid ? w[i] : 0.f;
            bias = load_floats(b == nullptr ? nullptr : b + me.first, me.valid, 0.f);
        }
    }
    // Weight i of these channels as they lie in memory, channel by channel.
    __device__ __forceinline__ float& of(int i) { return at(weight[i % WIDTH], i / WIDTH); }
};

__device__ __forceinline__ float4 multiply_add(float4 a, float4 b, float4 c) {
    return make_float4(fmaf(a.x, b.x, c.x), fmaf(a.y, b.y, c.y), fmaf(a.z, b.z, c.z), fmaf(a.w, b.w, c.w));
}
__device__ __forceinline__ float4 activation(float4 v) {
    return SILU ? make_float4(silu(v.x), silu(v.y), silu(v.z), silu(v.w)) : v;
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
    const io_t *x, *state;  // of this sequence and these channels; state (WIDTH - 1, CHANNELS) or null
    const unsigned char* resets;
    i64 x_row, state_row;

    // Row t >= 1 - WIDTH; what lies before the sequence is the state.
    __device__ __forceinline__ io4 read(i64 t, const Channels& me) const {
        const io_t* p = t >= 0 ? x + t * x_row : state + (t + PAST) * state_row;
        return load4<ALIGNED>(p, t >= 0 || state != nullptr ? me.valid : 0);
    }
    // The window before row t0, whose newest input is at x[PAST].
    __device__ __forceinline__ void recall(Window& window, i64 t0, const Channels& me) const {
        io4 rows[WIDTH];  // all on their way before the first is used
#pragma unroll
        for (int k = 0; k < PAST; k++) rows[k] = read(t0 - PAST + k, me);
        window.empty();
#pragma unroll
        for (int k = 0; k < PAST; k++) {
            if (RESETS && t0 - PAST + k >= 0 && resets[t0 - PAST + k]) window.empty();
            window.push(unpack(rows[k]));
        }
    }
};
