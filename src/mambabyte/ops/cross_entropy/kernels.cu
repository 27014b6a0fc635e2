// -log softmax(logits)[target] of every row and its gradient. A warp takes a row of VOCABULARY logits, read four at a
// time and turned into float32 in registers only. From the host: IO, VOCABULARY, WARPS.

constexpr int QUADS = (VOCABULARY + 127) / 128;
constexpr bool WHOLE = VOCABULARY % 4 == 0;
#define NOT_A_NUMBER __int_as_float(0x7fffffff)

struct Place {
    int lane = threadIdx.x % 32;
    i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32;
    __device__ int column(int quad) const { return (quad * 32 + lane) * 4; }
};

extern "C" __global__ void __launch_bounds__(WARPS * 32)
    cross_entropy_forward(const io_t* logits, const i64* targets, float* losses, float* log_sums, i64 rows,
                          i64 ignore) {
    Place me;
    if (me.row >= rows) return;
    const io_t* from = logits + me.row * VOCABULARY;
    float4 v[QUADS];
    float largest = -INF;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int column = me.column(i);
        v[i] = unpack(load4<WHOLE>(from + column, VOCABULARY - column));
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (column + c < VOCABULARY) largest = fmaxf(largest, at(v[i], c));
    }
#pragma unroll
    for (int lanes = 16; lanes >= 1; lanes /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL, largest, lanes));
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < QUADS; i++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (me.column(i) + c < VOCABULARY) sum += ex2((at(v[i], c) - largest) * LOG2E);
#pragma unroll
    for (int lanes = 16; lanes >= 1; lanes /= 2) sum += __shfl_xor_sync(ALL, sum, lanes);
    if (me.lane != 0) return;
    i64 target = targets[me.row];
    bool counts = target != ignore, inside = 0 <= target && target < VOCABULARY;
    float log_sum = counts && !inside ? NOT_A_NUMBER : largest + logf(sum);  // and so are the gradients
    log_sums[me.row] = log_sum;
    losses[me.row] = counts ? log_sum - (inside ? to_float(from[target]) : 0.f) : 0.f;
}

// dlogits = (softmax - one hot) dloss; a null stride means one dloss for all rows.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    cross_entropy_backward(const float* dlosses, i64 stride, const io_t* logits, const i64* targets,
                           const float* log_sums, io_t* dlogits, i64 rows, i64 ignore) {
    Place me;
    if (me.row >= rows) return;
    i64 target = targets[me.row];
    float dloss = target == ignore ? 0.f : dlosses[me.row * stride], log_sum = log_sums[me.row];
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int column = me.column(i);
        float4 v = unpack(load4<WHOLE>(logits + me.row * VOCABULARY + column, VOCABULARY - column));
#pragma unroll
        for (int c = 0; c < 4; c++)
            at(v, c) = dloss * (ex2((at(v, c) - log_sum) * LOG2E) - (column + c == target ? 1.f : 0.f));
        store4<WHOLE>(dlogits + me.row * VOCABULARY + column, VOCABULARY - column, v);
    }
}
