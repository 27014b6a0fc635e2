// Forward selective scan, h_t = exp(s_t A) h_(t-1) + s_t x_t B_t and y_t = (C_t . h_t + D x_t) silu(z_t).
//
// A warp walks its channels through time in tiles of TILE rows: stage (s, s x) and B, C in shared memory, advance the
// states in registers, leave each lane's share of C . h in shared memory, add the shares up, gate and store. Nothing is
// shared between warps. Where batch x channels cannot fill the GPU, time is cut into segments: `scan_segment_states`
// finds each segment's end state from zero, `scan_carry` chains them (the decay over a segment is exp(A sum s)), and
// `scan_forward` then runs all segments at once. `scan_segment_adjoints` is the same thing backwards, for the gradient
// of the state.
//
// From the host: what layout.cuh takes, CHUNK (rows between checkpoints), TILE, BATCH (rows in registers) and
// MIN_BLOCKS.

using Burst = Quads<TILE>;
using StateBurst = StateQuads<TILE>;
constexpr int PASSES = Burst::PASSES;

struct Tile {
    float2 step[TILE][STEP_ROW];  // s, and what enters the state with B (or C): s x, or dy
    float4 in[TILE][PARTS], out[TILE][PARTS];
    float partial[TILE][PARTIAL_ROW];
    int starts[TILE];  // whether a document starts there
};

enum Mode { FORWARD, STATES_ONLY, ADJOINTS_ONLY };

struct Sequence {
    Rows x, dt, z, B, C, y;  // for ADJOINTS_ONLY x is dy, and C stands where B does
    const float *A, *D, *dt_bias;
    const unsigned char* resets;
    i64 L, E;
};

template <Mode MODE>
struct Inputs {  // of one tile, as they lie in memory, on their way
    Burst x, dt, z;
    StateBurst in, out;
    io4 raw_x[PASSES], raw_dt[PASSES], raw_z[PASSES], raw_in[StateBurst::PASSES], raw_out[StateBurst::PASSES];

    __device__ __forceinline__ Inputs(const Sequence& q, const Lane& me, i64 b, i64 t0)
        : x(q.x, me, b, t0),
          dt(q.dt, me, b, t0),
          z(q.z, me, b, t0),
          in(MODE == ADJOINTS_ONLY ? q.C : q.B, me, b, t0),
          out(q.C, me, b, t0) {}
    __device__ __forceinline__ void load(const Lane& me, int rows) {
        x.load(raw_x, me, rows), dt.load(raw_dt, me, rows), in.load(raw_in, me, rows);
        if (GATED && MODE != STATES_ONLY) z.load(raw_z, me, rows);
        if (MODE == FORWARD) out.load(raw_out, me, rows);
    }
    __device__ __forceinline__ void move(i64 rows) {
        x.move(rows), dt.move(rows), z.move(rows), in.move(rows), out.move(rows);
    }
};

// Says whether a document starts in the tile.
template <Mode MODE>
__device__ __forceinline__ bool stage(Tile& tile, const Inputs<MODE>& from, const unsigned char* resets, const Lane& me,
                                      float4 bias, int rows) {
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        int row = me.quad_row + i * ROWS_PER_PASS;
        if (TILE % ROWS_PER_PASS != 0 && row >= TILE) break;
        float4 x = unpack(from.raw_x[i]), dt = unpack(from.raw_dt[i]), z = unpack(from.raw_z[i]), s, enters;
        float exists = row < rows ? 1.f : 0.f;  // a row that does not exist has s = 0: decay 1, nothing enters
#pragma unroll
        for (int c = 0; c < 4; c++) {
            at(s, c) = exists * step_of(at(dt, c), at(bias, c));
            at(enters, c) = MODE == ADJOINTS_ONLY ? (GATED ? at(x, c) * at(z, c) * sigmoid(at(z, c)) : at(x, c))
                                                  : at(s, c) * at(x, c);
        }
        put_steps(&tile.step[row][me.quad_column], s, enters);
    }
    StateBurst::put(tile.in, from.raw_in, me);
    if (MODE == FORWARD) StateBurst::put(tile.out, from.raw_out, me);
    if (!RESETS) return false;
    int lane = threadIdx.x % 32;
    bool start = lane < TILE && lane < rows && resets[lane];
    if (lane < TILE) tile.starts[lane] = start;
    return __any_sync(ALL, start);
}

// BATCH rows are walked together: first all reads of shared memory, then the arithmetic, then all writes. A write in
// between would keep the compiler from moving the next row's reads and exponentials up, and one or two warps a
// scheduler cannot hide that.
template <Mode MODE, bool STARTS>
struct Operands {
    Step step[BATCH];
    float4 in[BATCH], out[BATCH];
    int start[BATCH];

    __device__ __forceinline__ void load(const Tile& tile, int first, const Lane& me) {
#pragma unroll
        for (int r = 0; r < BATCH; r++) {
            int t = MODE == ADJOINTS_ONLY ? TILE - 1 - (first + r) : first + r;
            step[r].load(tile.step[t], me);
            in[r] = tile.in[t][me.part];
            if (MODE == FORWARD) out[r] = tile.out[t][me.part];
            if (STARTS) start[r] = tile.starts[t];
        }
    }
};

// h over BATCH rows and, in the forward, this lane's share of y = C . h; for the adjoint g = exp(s A) (g + dy C). What
// a reset drops may be infinite, and then nothing that it is multiplied by would drop it.
template <Mode MODE, bool STARTS>
__device__ __forceinline__ void advance(const Operands<MODE, STARTS>& row, const float4 (&a)[CHANNELS],
                                        float4 (&h)[CHANNELS], float (&y)[BATCH][CHANNELS],
                                        float (&elapsed)[CHANNELS]) {
#pragma unroll
    for (int r = 0; r < BATCH; r++) {
        bool start = STARTS && row.start[r];
#pragma unroll
        for (int j = 0; j < CHANNELS; j++) {
            float s = row.step[r].of[j].x, enters = row.step[r].of[j].y;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                float decay = ex2(s * at(a[j], n)), in = at(row.in[r], n);
                if (MODE == ADJOINTS_ONLY) at(h[j], n) = start ? 0.f : decay * fmaf(enters, in, at(h[j], n));
                else at(h[j], n) = start ? enters * in : fmaf(decay, at(h[j], n), enters * in);
                if (MODE == FORWARD)
                    y[r][j] = n == 0 ? at(h[j], n) * at(row.out[r], n) : fmaf(at(h[j], n), at(row.out[r], n), y[r][j]);
            }
            if (MODE != FORWARD) elapsed[j] = start ? INF : elapsed[j] + s;
        }
    }
}

template <Mode MODE, bool STARTS>
__device__ __forceinline__ void walk_tile(Tile& tile, const Lane& me, const float4 (&a)[CHANNELS],
                                          float4 (&h)[CHANNELS], float (&elapsed)[CHANNELS]) {
    Operands<MODE, STARTS> row[2];
    row[0].load(tile, 0, me);
#pragma unroll
    for (int first = 0; first < TILE; first += BATCH) {
        float y[BATCH][CHANNELS];
        if (first + BATCH < TILE) row[(first / BATCH + 1) % 2].load(tile, first + BATCH, me);
        advance<MODE, STARTS>(row[first / BATCH % 2], a, h, y, elapsed);
#pragma unroll
        for (int r = 0; r < BATCH; r++)
            if (MODE == FORWARD) put_shares(tile.partial[first + r], y[r], me);
    }
}

__device__ __forceinline__ void finish(const Tile& tile, const io4 (&x)[PASSES], const io4 (&z)[PASSES],
                                       const Burst& to, const Lane& me, float4 D, int rows) {
#pragma unroll
    for (int i = 0; i < PASSES; i++) {
        int row = me.quad_row + i * ROWS_PER_PASS;
        if (TILE % ROWS_PER_PASS != 0 && row >= TILE) break;
        float4 u = unpack(x[i]), gate = unpack(z[i]), y = gather(tile.partial[row], me);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            at(y, c) = fmaf(at(D, c), at(u, c), at(y, c));
            if (GATED) at(y, c) *= at(gate, c) * sigmoid(at(gate, c));
        }
        to.store(i, y, me, rows);
    }
}

// Rows [begin, end) of sequence b, h in and out; checkpoints (chunks, E, N) of this sequence receive h every CHUNK
// rows.
template <Mode MODE>
__device__ __forceinline__ void walk(Tile& tile, const Sequence& q, const Lane& me, i64 b, i64 begin, i64 end,
                                     float4 (&h)[CHANNELS], float (&elapsed)[CHANNELS], float* checkpoints) {
    constexpr bool REVERSE = MODE == ADJOINTS_ONLY;
    constexpr int MOVE = REVERSE ? -TILE : TILE;
    float4 a[CHANNELS];
    load_decay(a, q.A, me, q.E);
    i64 quad_channel = me.channel - me.column * CHANNELS + me.quad_column;
    float4 bias = load_floats(q.dt_bias == nullptr ? nullptr : q.dt_bias + quad_channel, me.quad_valid, 0.f);
    float4 D = load_floats(q.D == nullptr ? nullptr : q.D + quad_channel, me.quad_valid, 0.f);
    int tiles = (int)((end - begin + TILE - 1) / TILE);
    i64 t0 = begin + (REVERSE ? tiles - 1 : 0) * TILE;
    int rows = (int)(end - t0);  // from t0 to the end: a tile takes as many as it holds
    Inputs<MODE> inputs(q, me, b, t0);
    Burst y(q.y, me, b, t0);
    const unsigned char* resets = q.resets + b * q.L + t0;
    int until_checkpoint = 0;
    if (checkpoints != nullptr) checkpoints += t0 / CHUNK * q.E * N;
    inputs.load(me, rows);
    for (int i = 0; i < tiles; i++, rows -= MOVE, until_checkpoint -= TILE) {
        if (MODE == FORWARD && checkpoints != nullptr && until_checkpoint == 0) {
            store_slab(checkpoints, h, me, q.E);
            checkpoints += q.E * N;
            until_checkpoint = CHUNK;
        }
        bool starts = stage(tile, inputs, resets, me, bias, rows);
        io4 x[PASSES], z[PASSES];
#pragma unroll
        for (int p = 0; p < PASSES; p++) x[p] = inputs.raw_x[p], z[p] = inputs.raw_z[p];
        inputs.move(MOVE), resets += MOVE;
        if (i + 1 < tiles) inputs.load(me, rows - MOVE);  // on its way while the rows below are walked
        __syncwarp();
        if (RESETS && starts) walk_tile<MODE, true>(tile, me, a, h, elapsed);
        else walk_tile<MODE, false>(tile, me, a, h, elapsed);
        __syncwarp();
        if (MODE == FORWARD) finish(tile, x, z, y, me, D, rows), y.move(MOVE);
    }
}

struct Place {  // what this warp works on: channels from `channel`, rows [begin, end) of sequence b, a segment
    i64 channel, b, segment, begin, end;
    // `visited` of the segments are walked, those from number `first` on.
    __device__ Place(i64 L, i64 visited, i64 first, i64 segment_rows) {
        channel = ((i64)blockIdx.y * WARPS + threadIdx.x / 32) * WARP_CHANNELS;
        b = blockIdx.x / visited;
        segment = first + blockIdx.x % visited;
        begin = segment * segment_rows;
        end = min(L, begin + segment_rows);
    }
};

#define SEQUENCE_PARAMETERS                                                                                            \
    io_t *x, i64 x_batch, i64 x_row, io_t *dt, i64 dt_batch, i64 dt_row, io_t *z, i64 z_batch, i64 z_row, io_t *B,     \
        i64 B_batch, i64 B_row, io_t *C, i64 C_batch, i64 C_row, const float *A, const float *D, const float *dt_bias, \
        const unsigned char *resets, i64 L, i64 E, i64 segments, i64 segment_rows
#define SEQUENCE(y)                                                                                                 \
    Sequence {                                                                                                      \
        {x, x_batch, x_row}, {dt, dt_batch, dt_row}, {z, z_batch, z_row}, {B, B_batch, B_row}, {C, C_batch, C_row}, \
            {y, L * E, E}, A, D, dt_bias, resets, L, E                                                              \
    }

// first (B, segments, E, N): the state before each segment, or null for zeros. last (B, E, N) receives the final state.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
    scan_forward(SEQUENCE_PARAMETERS, const float* first, io_t* y, float* last, float* checkpoints) {
    __shared__ Tile tiles[WARPS];
    Place place(L, segments, 0, segment_rows);
    if (place.channel >= E) return;
    Lane me(place.channel, E);
    float4 h[CHANNELS];
    float elapsed[CHANNELS];
    load_slab(h, first == nullptr ? nullptr : first + (place.b * segments + place.segment) * E * N, me, E, 0.f);
    if (checkpoints != nullptr) checkpoints += place.b * ((L + CHUNK - 1) / CHUNK) * E * N;
    walk<FORWARD>(tiles[threadIdx.x / 32], SEQUENCE(y), me, place.b, place.begin, place.end, h, elapsed, checkpoints);
    if (place.segment == segments - 1) store_slab(last + place.b * E * N, h, me, E);
}

template <Mode MODE>
__device__ void walk_segment(Tile& tile, const Sequence& q, const Place& place, i64 segments, float* local,
                             float* elapsed_out) {
    if (place.channel >= q.E) return;
    Lane me(place.channel, q.E);
    float4 h[CHANNELS];
    float elapsed[CHANNELS];
    load_slab(h, nullptr, me, q.E, 0.f);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++) elapsed[j] = 0.f;
    walk<MODE>(tile, q, me, place.b, place.begin, place.end, h, elapsed, nullptr);
    i64 index = place.b * segments + place.segment;
    store_slab(local + index * q.E * N, h, me, q.E);
#pragma unroll
    for (int j = 0; j < CHANNELS; j++)
        if (me.part == 0 && me.channel + j < q.E) elapsed_out[index * q.E + me.channel + j] = elapsed[j];
}

// local (B, segments, E, N): each segment's end state from zero. elapsed (B, segments, E): its sum of s, infinite past
// a reset. The last segment is left out.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    scan_segment_states(SEQUENCE_PARAMETERS, float* local, float* elapsed) {
    __shared__ Tile tiles[WARPS];
    walk_segment<STATES_ONLY>(tiles[threadIdx.x / 32], SEQUENCE(nullptr), Place(L, segments - 1, 0, segment_rows),
                              segments, local, elapsed);
}

// The same for the gradient of the state, from each segment's last row to the one before its first; x is dy here. The
// first segment is left out.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    scan_segment_adjoints(SEQUENCE_PARAMETERS, float* local, float* elapsed) {
    __shared__ Tile tiles[WARPS];
    walk_segment<ADJOINTS_ONLY>(tiles[threadIdx.x / 32], SEQUENCE(nullptr), Place(L, segments - 1, 1, segment_rows),
                                segments, local, elapsed);
}

// In place, local (B, segments, E, N) from what each segment adds to what each segment starts with; `first` (B, E, N)
// or null starts the chain, which runs from the last segment to the first if `reverse`. One thread an element of (E,
// N).
extern "C" __global__ void scan_carry(float* local, const float* elapsed, const float* A, const float* first,
                                      i64 segments, i64 E, i64 reverse) {
    i64 element = (i64)blockIdx.y * blockDim.x + threadIdx.x, b = blockIdx.x;
    if (element >= E * N) return;
    float a = A[element] * LOG2E, carry = first == nullptr ? 0.f : first[b * E * N + element];
    for (i64 i = 0; i < segments; i++) {
        i64 index = b * segments + (reverse ? segments - 1 - i : i);
        bool last = i == segments - 1;  // was not walked, and nothing comes after it
        float added = last ? 0.f : local[index * E * N + element], s = last ? 0.f : elapsed[index * E + element / N];
        local[index * E * N + element] = carry;
        float decay = isinf(s) ? 0.f : ex2(s * a);
        carry = RESETS && isinf(s) ? added : decay * carry + added;
    }
}
