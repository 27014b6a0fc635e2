// A whole model reads a few bytes in one launch: every block stays for all layers. A block owns whole channels and
// outputs; what the others must know it sends them as mail, 4 bytes and a tag that says of which layer they are, so
// that whoever needs them looks until they are there: no barrier of the grid, no fence.
//
// A layer's phases, each a product and what follows it:
//   in      norm, in-projection, convolution      -> u           (all blocks; x and z of a channel in one block)
//   select  x-projection                          -> selected    (the blocks from the last down, a tile each)
//   states  step sizes, scan, gate                -> y           (all; the channels of the first phase)
//   out     out-projection, residual              -> stream      (all)
// and after the last layer the norm and the head. A place in the mail is written again a layer later, by a block that
// has by then mail which depends on everybody's having read it.
//
// Weights do not wait for activations: one warp copies the blocks of weights that this thread block will use, in that
// order, through a ring in shared memory as soon as there is room.

// The copying warp.
__device__ void fetch(Shared& s, Place& me, const unsigned char* blocks, int count) {
    for (int done = 0; done < count; done += WARPS) {
        unsigned bytes = min(WARPS, count - done) * BLOCK_BYTES;
        barrier_wait(&s.empty[me.stage], me.parity ^ 1);
        barrier_expect(&s.full[me.stage], bytes);
        bulk_copy(s.ring[me.stage], blocks + (i64)done * BLOCK_BYTES, bytes, &s.full[me.stage]);
        me.next_stage();
    }
}
__device__ void fetch_all(const Model& m, Shared& s, Place& me) {
    auto from = [](const unsigned char* matrix, i64 tile, int slices) { return matrix + tile * slices * BLOCK_BYTES; };
    for (int layer = 0; layer <= m.layers; layer++) {
        int half = layer % 2;
        bool last = layer == m.layers;
        unsigned bytes = last ? 0 : me.channels.count * sizeof(Channels);
        barrier_wait(&s.own_empty[half], layer / 2 % 2 ^ 1);
        barrier_expect(&s.own_full[half], NORM_BYTES + bytes);
        bulk_copy(s.norm[half], m.norms + (i64)layer * (1 + BIAS) * D_PITCH, NORM_BYTES, &s.own_full[half]);
        if (last) {
            fetch(s, me, from(m.head, me.head.first, D_SLICES), me.head.count * D_SLICES);
            return;
        }
        bulk_copy(s.channels[half], m.channels + (i64)layer * E_TILES + me.channels.first, bytes, &s.own_full[half]);
        i64 channels = (i64)layer * E_TILES + me.channels.first, select = (i64)layer * SELECT_TILES + me.select.first;
        fetch(s, me, from(m.in, 2 * channels, D_SLICES), 2 * me.channels.count * D_SLICES);
        fetch(s, me, from(m.select, select, E_SLICES), me.select.count * E_SLICES);
        fetch(s, me, from(m.out, (i64)layer * D_TILES + me.out.first, E_SLICES), me.out.count * E_SLICES);
    }
}

// A lane's part of a slice of 8 columns, for `multiply`: from the normalised columns, or from the mail.
__device__ __forceinline__ void take_columns(uint4 (&part)[4], const Shared& s, int lane, int slice, int columns) {
    const io_t* row = &s.columns[min(lane % 8, columns - 1)][slice * SLICE + lane / 8 * 8];
#pragma unroll
    for (int i = 0; i < 4; i++) part[i] = load_matrices(row + i * 32);
}
__device__ __forceinline__ void take_mail(uint4 (&part)[4], const u64* mail, int lane, int slice, int columns,
                                          unsigned tag) {
    int row = lane / 4, place = slice * SLICE + lane % 4 * 2;
    int pieces = E_TILES % 16 == 0 ? 16 : min(16, E_TILES - slice * 16);  // beyond, nobody writes
    uint2 data[8] = {};
    if (row < columns) open_mail(data, mail + mail_place(row, place), 64, pieces, tag);
#pragma unroll
    for (int i = 0; i < 4; i++)
        part[i] = make_uint4(data[2 * i].x, data[2 * i].y, data[2 * i + 1].x, data[2 * i + 1].y);
    __syncwarp();
}

// The slices of `tiles` tiles' products with the columns, each slice by a warp, to s.sums [tile][slice][column][TILE]:
// of the normalised columns, or of those in the mail.
template <int SLICES, bool MAIL>
__device__ __forceinline__ void multiply_tiles(Shared& s, Place& me, int tiles, int columns, const u64* mail,
                                               unsigned tag) {
    int lane = me.lane, row = lane / 4, output = lane % 4 * 2;
#pragma unroll 1
    for (int task = me.warp; task - me.warp < tiles * SLICES; task += WARPS) {
        bool mine = task < tiles * SLICES;
        uint4 part[4], none[4] = {};  // a matrix instruction has room for 8 columns more
        if (mine) {
            if (MAIL) take_mail(part, mail, lane, task % SLICES, columns, tag);
            else take_columns(part, s, lane, task % SLICES, columns);
        }
        barrier_wait(&s.full[me.stage], me.parity);
        if (mine) {
            float d[4];
            uint4 weights[4];
            take_block(weights, s.ring[me.stage] + me.warp * BLOCK_BYTES, lane);
            multiply(d, part, none, weights);
            float* sums = s.sums + (task * COLUMNS + row) * TILE + output;
            if (row < columns) *(float2*)sums = make_float2(d[0], d[1]);
        }
        __syncwarp();
        if (lane == 0) barrier_arrive(&s.empty[me.stage]);
        me.next_stage();
    }
    meet();
}
template <int SLICES>
__device__ __forceinline__ float total(const Shared& s, int output, int column) {
    const float* sums = s.sums + ((output / TILE) * SLICES * COLUMNS + column) * TILE + output % TILE;
    float sum = sums[0];
#pragma unroll
    for (int slice = 1; slice < SLICES; slice++) sum += sums[slice * COLUMNS * TILE];
    return sum;
}

// Each warp's slices of columns, or their squares, added up for all to see.
template <bool SQUARES, int MOST>
__device__ __forceinline__ void add_slices_of(float (*sums)[D_SLICES], const float4 (&x)[MOST], const Place& me,
                                              int columns) {
#pragma unroll
    for (int i = 0; i < MOST; i++) {
        int column = (me.warp + i * WARPS) / D_SLICES, slice = (me.warp + i * WARPS) % D_SLICES;
        if (column >= columns) continue;
        float sum = SQUARES ? slice_square(x[i]) : slice_sum(x[i]);
        if (me.lane == 0) sums[column][slice] = sum;
    }
    meet();
}

// The stream, from the embedding in the first layer, normalised: a warp a slice of a column.
__device__ __forceinline__ void normalise_all(const Model& m, const Batch& batch, Shared& s, const Place& me, int layer,
                                              unsigned tag) {
    constexpr int MOST = (COLUMNS * D_SLICES + WARPS - 1) / WARPS;
    float4 x[MOST];
    auto column_of = [&](int i) { return (me.warp + i * WARPS) / D_SLICES; };
    auto place_of = [&](int i) { return (me.warp + i * WARPS) % D_SLICES * SLICE + me.lane * 4; };
    constexpr int SENT = D_TILES * TILE;  // beyond, nobody writes
    if (layer == 0) {
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            const float* bytes = m.embedding + (i64)batch.id[min(column_of(i), batch.width() - 1)] * D_PITCH;
            x[i] = *(const float4*)(bytes + place_of(i));
        }
    } else {
        unsigned wrong;
        do {
            u64 a[MOST][4];
#pragma unroll
            for (int i = 0; i < MOST; i++) {  // of a column too many, the last one's again
                int place = SENT % SLICE == 0 ? place_of(i) : min(place_of(i), SENT - 4);
                const u64* mail = m.stream + stream_place(min(column_of(i), batch.width() - 1), place);
                get(mail, a[i][0], a[i][1]), get(mail + SLICE / 2, a[i][2], a[i][3]);
            }
            wrong = 0;
#pragma unroll
            for (int i = 0; i < MOST; i++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    wrong |= (unsigned)(a[i][c] >> 32) ^ tag;
                    at(x[i], c) = SENT % SLICE == 0 || place_of(i) < SENT ? __uint_as_float((unsigned)a[i][c]) : 0.f;
                }
            if (wrong) look_again();
        } while (wrong);
    }
    __syncwarp();
    if (LAYER) {
        add_slices_of<false>(s.slices[0], x, me, batch.width());
#pragma unroll
        for (int i = 0; i < MOST; i++)
            if (column_of(i) < batch.width())
                x[i] = centred(x[i], add_slices(s.slices[0][column_of(i)]) / D, place_of(i));
    }
    add_slices_of<true>(s.slices[1], x, me, batch.width());
#pragma unroll
    for (int i = 0; i < MOST; i++)
        if (column_of(i) < batch.width()) {
            float rate = rate_of(add_slices(s.slices[1][column_of(i)]));
            *(io4*)&s.columns[column_of(i)][place_of(i)] = scaled(x[i], rate, s.norm[layer % 2], place_of(i));
        }
    meet();
}

__device__ __forceinline__ i64 place_in(const Model& m, int slot, int layer, i64 e) {
    return ((i64)slot * m.layers + layer) * E + e;
}

// A thread convolves one channel of one column. Its last inputs are those of the columns before it or, from `place`
// on, those of the state, which were asked for before the others had sent anything.
__device__ __forceinline__ void in_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                         unsigned tag) {
    int channel = threadIdx.x % CHANNELS, column = threadIdx.x / CHANNELS, c = channel % TILE;
    i64 e = (i64)me.channels.first * TILE + channel;
    bool sends = column < batch.width() && channel < me.channels.count * TILE, real = sends && e < E;
    int place = sends ? batch.place_of(column) : 0;
    float past[CONV_STATE];
    const float* begin = m.conv + (real ? place_in(m, batch.begin[column], layer, e) * CONV_STATE : 0);
#pragma unroll
    for (int w = 0; w < CONV_STATE; w++) past[w] = real && w + place < CONV_STATE ? begin[w + place] : 0.f;
    barrier_wait(&s.own_full[layer % 2], layer / 2 % 2);
    normalise_all(m, batch, s, me, layer, tag - 1);
    multiply_tiles<D_SLICES, false>(s, me, 2 * me.channels.count, batch.width(), nullptr, tag);
#pragma unroll 1
    for (int i = threadIdx.x; i < 2 * CHANNELS * batch.width(); i += THREADS) {
        int mine = i % CHANNELS, z = i / CHANNELS % 2, at_column = i / CHANNELS / 2;
        float sum = rounded(total<D_SLICES>(s, (mine / TILE * 2 + z) * TILE + mine % TILE, at_column));
        (z ? s.z : s.x)[at_column][mine] = sum;
    }
    if (COLUMNS > 1) meet();  // of one column, each thread has written the x that it reads
    if (sends) {
        const Channels& own = s.channels[layer % 2][channel / TILE];
        float x = s.x[column][channel];
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++)
            if (w + place >= CONV_STATE) past[w] = s.x[column - CONV_STATE + w][channel];
        float u = convolve(past, x, own.taps[c], own.conv_bias[c]), next = __shfl_xor_sync(3u << (me.lane & ~1), u, 1);
        if (c % 2 == 0) put(m.u + mail_place(column, (int)e), pack2(u, next), tag);
        s.u[column][channel] = u;
        move_on(past, x);
        float* after = m.conv + (real ? place_in(m, batch.after[column], layer, e) * CONV_STATE : 0);
#pragma unroll
        for (int w = 0; w < CONV_STATE; w++)
            if (real) after[w] = past[w];
    }
}

__device__ __forceinline__ void select_phase(const Model& m, const Batch& batch, Shared& s, Place& me, unsigned tag) {
    if (me.select.count == 0) return;
    if (COLUMNS == 1) meet();  // the sums of the phase before have been read
    multiply_tiles<E_SLICES, true>(s, me, me.select.count, batch.width(), m.u, tag);
#pragma unroll 1
    for (int i = threadIdx.x; i < SELECT_OWN * TILE * batch.width(); i += THREADS) {
        int output = i % (SELECT_OWN * TILE), column = i / (SELECT_OWN * TILE);
        if (output < me.select.count * TILE)
            put(m.selected + (i64)column * SELECT_PITCH + me.select.first * TILE + output,
                __float_as_uint(rounded(total<E_SLICES>(s, output, column))), tag);
    }
}

// LANES neighbours walk a channel of a row, CHUNK columns at a time, of which all but the states is computed side by
// side.
template <int LANES>
__device__ __forceinline__ void walk(const Model& m, const Batch& batch, Shared& s, const Place& me, int layer, int row,
                                     int channel, float (&h)[N_PITCH / LANES], unsigned tag) {
    constexpr int OWN = N_PITCH / LANES, CHUNK = COLUMNS == 1 ? 1 : OWN > 4 ? 2 : 4;
    int part = me.lane % LANES, c = channel % TILE;
    unsigned group = group_of(me.lane, LANES), two_channels = group_of(me.lane, 2 * LANES);
    i64 e = (i64)me.channels.first * TILE + channel;
    const Channels& own = s.channels[layer % 2][channel / TILE];
    float A[OWN], skip = own.skip[c];
    load_states(A, own.A[c] + part * OWN);
    int last = batch.first_of(row + 1);
#pragma unroll 1
    for (int first = batch.first_of(row); first < last; first += CHUNK) {
        // everything is read before anything is written: the compiler cannot know that they are different places
        float dt[CHUNK], u[CHUNK], z[CHUNK], B[CHUNK][OWN], C[CHUNK][OWN], after[CHUNK][OWN], y[CHUNK];
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            int column = min(first + j, last - 1);
            dt[j] = first + j < last ? s.dt[column][channel] : 0.f;  // which keeps the states as they are
            u[j] = s.u[column][channel], z[j] = s.z[column][channel];
            pick(B[j], s.selected[column] + R, part), pick(C[j], s.selected[column] + R + N, part);
        }
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            y[j] = advance(h, dt[j], u[j], B[j], C[j], A);
#pragma unroll
            for (int i = 0; i < OWN; i++) after[j][i] = h[i];
        }
#pragma unroll
        for (int j = 0; j < CHUNK; j++) y[j] = gated(add_lanes<LANES>(y[j], group), u[j], z[j], skip);
#pragma unroll
        for (int j = 0; j < CHUNK; j++) {
            float next = __shfl_down_sync(two_channels, y[j], LANES);
            if (me.lane % (2 * LANES) == 0 && first + j < last)
                put(m.y + mail_place(first + j, (int)e), pack2(y[j], next), tag);
        }
#pragma unroll
        for (int j = 0; j < CHUNK; j++)
            if (first + j < last && e < E)
                store_states(after[j],
                             m.ssm + place_in(m, batch.after[first + j], layer, e) * N_PITCH + part * OWN);
    }
}

// Everything of the phase that needs a sequence's states, which are asked for first.
template <int LANES>
__device__ __forceinline__ void states_of_rows(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                               unsigned tag) {
    constexpr int OWN = N_PITCH / LANES, PAIRS = SELECT_TILES * TILE / 2;
    int row, channel;
    float h[OWN];
    auto turn_to = [&](int index) {
        row = index / LANES / CHANNELS, channel = index / LANES % CHANNELS;
        i64 e = (i64)me.channels.first * TILE + channel;
#pragma unroll
        for (int i = 0; i < OWN; i++) h[i] = 0.f;
        if (row < batch.height() && channel < me.channels.count * TILE && e < E)
            load_states(h, m.ssm + place_in(m, batch.begin[batch.first_of(row)], layer, e) * N_PITCH +
                               me.lane % LANES * OWN);
    };
    turn_to(threadIdx.x);
#pragma unroll 1
    for (int i = threadIdx.x; i < batch.width() * PAIRS; i += THREADS) {
        int column = i / PAIRS, place = i % PAIRS * 2;
        uint2 data[1];
        open_mail(data, m.selected + (i64)column * SELECT_PITCH + place, 2, 2, tag);
        *(float2*)&s.selected[column][place] = make_float2(__uint_as_float(data[0].x), __uint_as_float(data[0].y));
    }
    meet();
#pragma unroll 1
    for (int i = threadIdx.x; i < batch.width() * CHANNELS * PARTS; i += THREADS) {
        int mine = i / PARTS % CHANNELS, column = i / PARTS / CHANNELS, part = i % PARTS;
        const Channels& own = s.channels[layer % 2][mine / TILE];
        float sum = step_part(s.selected[column] + part * R_OWN, StepWeights(own.dt[mine % TILE], part));
        float dt = step_size(add_lanes<PARTS>(sum, group_of(me.lane, PARTS)), own.dt_bias[mine % TILE]);
        if (part == 0) s.dt[column][mine] = dt;
    }
    meet();
#pragma unroll 1
    for (int index = threadIdx.x; index < batch.height() * CHANNELS * LANES; index += THREADS) {
        if (index != threadIdx.x) turn_to(index);
        if (channel < me.channels.count * TILE) walk<LANES>(m, batch, s, me, layer, row, channel, h, tag);
    }
}

// Few rows leave threads for a state each.
__device__ __forceinline__ void states_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                             unsigned tag) {
    constexpr int MOST = N_PITCH < 16 ? N_PITCH : 16;
    if (COLUMNS == 1 || batch.height() * CHANNELS * MOST <= THREADS) states_of_rows<MOST>(m, batch, s, me, layer, tag);
    else states_of_rows<PARTS>(m, batch, s, me, layer, tag);
}

// `stream` is this thread's output of this thread's column, which no other thread changes.
__device__ __forceinline__ void out_phase(const Model& m, const Batch& batch, Shared& s, Place& me, int layer,
                                          float& stream, unsigned tag) {
    multiply_tiles<E_SLICES, true>(s, me, me.out.count, batch.width(), m.y, tag);
    if (threadIdx.x == 0) barrier_arrive(&s.own_empty[layer % 2]);
    int output = threadIdx.x % (OUT_TILES * TILE), column = threadIdx.x / (OUT_TILES * TILE);
    if (output < me.out.count * TILE && column < batch.width()) {
        int place = me.out.first * TILE + output;
        if (layer == 0) stream = m.embedding[(i64)batch.id[column] * D_PITCH + place];
        stream += rounded(total<E_SLICES>(s, output, column));
        put(m.stream + stream_place(column, place), __float_as_uint(stream), tag);
    }
}

__device__ __forceinline__ void head_phase(const Model& m, const Batch& batch, Shared& s, Place& me, unsigned tag) {
    barrier_wait(&s.own_full[m.layers % 2], m.layers / 2 % 2);
    if (me.head.count == 0) return;
    normalise_all(m, batch, s, me, m.layers, tag);
    multiply_tiles<D_SLICES, false>(s, me, me.head.count, batch.width(), nullptr, tag);
    int outputs = me.head.count * TILE;
#pragma unroll 1
    for (int i = threadIdx.x; i < outputs * batch.width(); i += THREADS) {
        int output = me.head.first * TILE + i % outputs;
        if (output < m.outputs)
            m.logits[(i64)(i / outputs) * m.outputs + output] = rounded(total<D_SLICES>(s, i % outputs, i / outputs));
    }
}

// Layer l's mail has the tag first_tag + l, which none of the launch before had.
extern "C" __global__ void __launch_bounds__(THREADS + 32, 1)
    read_columns(const __grid_constant__ Model m, const __grid_constant__ Batch batch, i64 first_tag) {
    extern __shared__ __align__(128) unsigned char memory[];
    Shared& s = *(Shared*)memory;
    Place me;
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) barrier_init(&s.full[i], 1), barrier_init(&s.empty[i], WARPS);
        for (int i = 0; i < 2; i++) barrier_init(&s.own_full[i], 1), barrier_init(&s.own_empty[i], 1);
        barrier_fence();
    }
    // step_size reads up to R_PITCH values, those beyond R with weights of zero
#pragma unroll 1
    for (int i = threadIdx.x; i < COLUMNS * SELECT_PITCH; i += THREADS + 32) (&s.selected[0][0])[i] = 0.f;
    __syncthreads();
    if (me.warp == WARPS) {
        if (me.lane == 0) fetch_all(m, s, me);
        return;
    }
    unsigned tag = (unsigned)first_tag;
    float stream = 0.f;
    for (int layer = 0; layer < m.layers; layer++, tag++) {
        in_phase(m, batch, s, me, layer, tag);
        select_phase(m, batch, s, me, tag);
        states_phase(m, batch, s, me, layer, tag);
        out_phase(m, batch, s, me, layer, stream, tag);
    }
    head_phase(m, batch, s, me, tag - 1);
}
