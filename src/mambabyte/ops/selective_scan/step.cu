// One position of the selective scan for many sequences; the states are updated where they lie.
//
// STATES / 4 neighbouring lanes share a (sequence, channel), four states each, so that a warp reads whole lines of
// state.

extern "C" __global__ void scan_step(float* state, i64 state_batch, const io_t* x, i64 x_batch, const io_t* dt,
                                     i64 dt_batch, const io_t* z, i64 z_batch, const io_t* B, i64 B_batch,
                                     const io_t* C, i64 C_batch, const float* A, const float* D, const float* dt_bias,
                                     io_t* y, i64 E) {
    i64 b = blockIdx.x, index = (i64)blockIdx.y * blockDim.x + threadIdx.x, e = index / PARTS;
    int part = index % PARTS, valid = e < E ? N - part * 4 : 0;
    e = min(e, E - 1);
    float* at_state = state + b * state_batch + e * N + part * 4;
    float4 h = load_floats(at_state, valid, 0.f), a = load_floats(A + e * N + part * 4, valid, 0.f);
    float u = to_float(x[b * x_batch + e]);
    float s = step_of(to_float(dt[b * dt_batch + e]), dt_bias == nullptr ? 0.f : dt_bias[e]), su = s * u, sum = 0.f;
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float in = n < valid ? to_float(B[b * B_batch + part * 4 + n]) : 0.f,
              out = n < valid ? to_float(C[b * C_batch + part * 4 + n]) : 0.f;
        at(h, n) = fmaf(ex2(s * (at(a, n) * LOG2E)), at(h, n), su * in);
        sum = fmaf(at(h, n), out, sum);
    }
    store_floats(at_state, valid, h);
#pragma unroll
    for (int lanes = 1; lanes < PARTS; lanes *= 2) sum += __shfl_xor_sync(ALL, sum, lanes);
    if (part != 0 || valid <= 0) return;
    if (D != nullptr) sum = fmaf(D[e], u, sum);
    if (GATED) {
        float gate = to_float(z[b * z_batch + e]);
        sum *= gate * sigmoid(gate);
    }
    y[b * E + e] = from_float(sum);
}
