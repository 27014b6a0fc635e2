// stream = x + residual; y = (stream - mean) rstd weight + bias, and its gradients. RMSNorm has mean 0.
//
// WARPS_A_ROW warps share a row of WIDTH elements, four neighbours at a time, all in registers between the two passes
// (statistics, then output). From the host: IO (of y), X_FLOATS (x is float32 whatever IO is), WIDTH, WARPS_A_ROW,
// ROWS_A_BLOCK, LAYER.

constexpr int LANES = WARPS_A_ROW * 32;
constexpr int QUADS = (WIDTH + 4 * LANES - 1) / (4 * LANES);
constexpr bool WHOLE = WIDTH % 4 == 0;
constexpr bool KEPT = QUADS <= 4;  // the weight, from row to row in the backward: 16 warps have 128 registers a lane

struct Place {
    int lane, row_in_block;
    i64 row;
    __device__ Place() {
        lane = threadIdx.x % LANES;
        row_in_block = threadIdx.x / LANES;
        row = (i64)blockIdx.x * ROWS_A_BLOCK + row_in_block;
    }
    __device__ int column(int quad) const { return (quad * LANES + lane) * 4; }
};

__device__ __forceinline__ float4 read_floats(const float* p, int valid) {
    if (WHOLE) return valid > 0 ? *(const float4*)p : float4();
    return load_floats(p, valid, 0.f);
}
__device__ __forceinline__ void write_floats(float* p, int valid, float4 v) {
    if (!WHOLE) store_floats(p, valid, v);
    else if (valid > 0) *(float4*)p = v;
}
__device__ __forceinline__ float4 read_x(const void* x, i64 place, int valid) {
    if (X_FLOATS) return read_floats((const float*)x + place, valid);
    return unpack(load4<WHOLE>((const io_t*)x + place, valid));
}
__device__ __forceinline__ float total(float4 v) { return (v.x + v.y) + (v.z + v.w); }
__device__ __forceinline__ float4 times(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 plus(float4 a, float4 b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}
// (v - mean) rstd; subtracting first loses nothing where the row is far from 0.
__device__ __forceinline__ float4 normalised(float4 v, float mean, float rstd) {
    if (!LAYER) return make_float4(v.x * rstd, v.y * rstd, v.z * rstd, v.w * rstd);
    return make_float4((v.x - mean) * rstd, (v.y - mean) * rstd, (v.z - mean) * rstd, (v.w - mean) * rstd);
}

// The sum over the row's lanes, in the same order every time. All threads of the block must call it.
__device__ __forceinline__ float sum_row(float v, const Place& me) {
    __shared__ float shares[ROWS_A_BLOCK][WARPS_A_ROW];
#pragma unroll
    for (int lanes = 16; lanes >= 1; lanes /= 2) v += __shfl_xor_sync(ALL, v, lanes);
    if (WARPS_A_ROW == 1) return v;
    __syncthreads();
    if (me.lane % 32 == 0) shares[me.row_in_block][me.lane / 32] = v;
    __syncthreads();
    v = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS_A_ROW; w++) v += shares[me.row_in_block][w];
    return v;
}

extern "C" __global__ void __launch_bounds__(LANES* ROWS_A_BLOCK)
    norm_forward(const void* x, const float* residual, const float* weight, const float* bias, double eps, io_t* y,
                 float* stream, float* rstd, float* mean, i64 rows) {
    Place me;
    bool exists = me.row < rows;
    float4 v[QUADS];
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int column = me.column(i), valid = exists ? WIDTH - column : 0;
        v[i] = read_x(x, me.row * WIDTH + column, valid);
        if (residual != nullptr) v[i] = plus(v[i], read_floats(residual + me.row * WIDTH + column, valid));
        write_floats(stream + me.row * WIDTH + column, valid, v[i]);
        sum += LAYER ? total(v[i]) : total(times(v[i], v[i]));
    }
    float middle = 0.f;
    sum = sum_row(sum, me);
    if (LAYER) {  // the variance from differences: a sum of squares would cancel
        middle = sum / WIDTH, sum = 0.f;
#pragma unroll
        for (int i = 0; i < QUADS; i++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float d = me.column(i) + c < WIDTH ? at(v[i], c) - middle : 0.f;
                sum = fmaf(d, d, sum);
            }
        sum = sum_row(sum, me);
    }
    float scale = rsqrtf(sum / WIDTH + (float)eps);
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        int column = me.column(i), valid = exists ? WIDTH - column : 0;
        float4 out = times(normalised(v[i], middle, scale), read_floats(weight + column, WIDTH - column));
        if (bias != nullptr) out = plus(out, read_floats(bias + column, WIDTH - column));
        store4<WHOLE>(y + me.row * WIDTH + column, valid, out);
    }
    if (exists && me.lane == 0) rstd[me.row] = scale, mean[me.row] = middle;
}

// dsum = dstream + rstd (u - mean(u n) n [- mean(u)]) with n the normalised row and u = dy weight. A block walks rows
// far apart and keeps its sums of dy n and dy for dweight and dbias: partial (blocks * ROWS_A_BLOCK, 2, WIDTH).
extern "C" __global__ void __launch_bounds__(LANES* ROWS_A_BLOCK)
    norm_backward(const io_t* dy, const float* dstream, const float* stream, const float* weight, const float* rstd,
                  const float* mean, float* dsum, float* partial, i64 rows) {
    Place me;
    float4 w[QUADS], dweight[QUADS], dbias[QUADS];
    auto weight_of = [&](int i) { return read_floats(weight + me.column(i), WIDTH - me.column(i)); };
#pragma unroll
    for (int i = 0; i < QUADS; i++) w[i] = KEPT ? weight_of(i) : float4(), dweight[i] = float4(), dbias[i] = float4();
    for (i64 first = (i64)blockIdx.x * ROWS_A_BLOCK; first < rows; first += (i64)gridDim.x * ROWS_A_BLOCK) {
        i64 row = first + me.row_in_block;
        bool exists = row < rows;
        float scale = exists ? rstd[row] : 0.f, middle = exists ? mean[row] : 0.f, along = 0.f, across = 0.f;
        float4 n[QUADS], u[QUADS];
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            int column = me.column(i), valid = exists ? WIDTH - column : 0;
            float4 d = unpack(load4<WHOLE>(dy + row * WIDTH + column, valid));
            n[i] = normalised(read_floats(stream + row * WIDTH + column, valid), middle, scale);
            u[i] = times(d, KEPT ? w[i] : weight_of(i));
            along += total(times(u[i], n[i]));
            if (LAYER) across += total(u[i]), dbias[i] = plus(dbias[i], d);
            else if (BIAS) dbias[i] = plus(dbias[i], d);
            dweight[i] = plus(dweight[i], times(d, n[i]));
        }
        along = sum_row(along, me) / WIDTH;
        if (LAYER) across = sum_row(across, me) / WIDTH;
#pragma unroll
        for (int i = 0; i < QUADS; i++) {
            int column = me.column(i), valid = exists ? WIDTH - column : 0;
            float4 out;
#pragma unroll
            for (int c = 0; c < 4; c++)
                at(out, c) = scale * (fmaf(at(n[i], c), -along, at(u[i], c)) - (LAYER ? across : 0.f));
            if (dstream != nullptr) out = plus(out, read_floats(dstream + row * WIDTH + column, valid));
            write_floats(dsum + row * WIDTH + column, valid, out);
        }
    }
    float* sums = partial + ((i64)blockIdx.x * ROWS_A_BLOCK + me.row_in_block) * 2 * WIDTH;
#pragma unroll
    for (int i = 0; i < QUADS; i++) {
        write_floats(sums + me.column(i), WIDTH - me.column(i), dweight[i]);
        write_floats(sums + WIDTH + me.column(i), WIDTH - me.column(i), dbias[i]);
    }
}
