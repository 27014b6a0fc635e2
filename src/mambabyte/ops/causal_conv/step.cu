// One position of many sequences; state (B, WIDTH - 1, CHANNELS) slides on where it lies.

extern "C" __global__ void __launch_bounds__(LANES)
    conv_step(io_t* state, i64 state_batch, i64 state_row, const io_t* x, i64 x_batch, const float* weight,
              const float* bias, io_t* y) {
    i64 b = blockIdx.x / COLUMNS;
    Channels me(blockIdx.x % COLUMNS);
    if (me.valid == 0) return;
    Taps taps;
    Window window;
    taps.load(weight, bias, me);
    window.empty();
#pragma unroll
    for (int k = 0; k < PAST; k++)
        window.push(unpack(load4<ALIGNED>(state + b * state_batch + k * state_row + me.first, me.valid)));
    window.push(unpack(load4<ALIGNED>(x + b * x_batch + me.first, me.valid)));
    store4<ALIGNED>(y + b * CHANNELS + me.first, me.valid, activation(window.convolve(taps)));
#pragma unroll
    for (int k = 0; k < PAST; k++)
        store4<ALIGNED>(state + b * state_batch + k * state_row + me.first, me.valid, window.x[k + 1]);
}
