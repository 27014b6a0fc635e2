// The two kernels of wide.cu that walk along sequences, the convolution and the scan. Their time is that of moving the
// states: a block asks for all those that its sequences start from, or several ahead, before it works on the first.
//
// From the host: CONV_COLUMNS and SCAN_COLUMNS, the columns in which the sequences of a block begin, those of the scan a
// multiple of PARTS and at most 32; SCAN_BLOCKS, the blocks of the scan that a multiprocessor has registers for;
// SCAN_AHEAD, how many times PARTS columns ahead states are asked for.

constexpr int WALK_THREADS = 128;  // of a block of either kernel

// Neighbouring channels of a thread of the convolution; four where quads of states and activations are whole.
constexpr int CONV_CHANNELS = E % 4 == 0 ? 4 : 1;

__device__ __forceinline__ void load_channels(float (&x)[4], const io_t* from) {
    float4 v = unpack(*(const io4*)from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}
__device__ __forceinline__ void load_channels(float (&x)[1], const io_t* from) { x[0] = to_float(*from); }
__device__ __forceinline__ void store_channels(io_t* to, const float (&y)[4]) {
    store_quad(to, pack(make_float4(y[0], y[1], y[2], y[3])));
}
__device__ __forceinline__ void store_channels(io_t* to, const float (&y)[1]) { *to = from_float(y[0]); }

// The convolution's states of a warp's channels, on their way between memory and the lanes that own them: neighbouring
// lanes read and write neighbouring pieces of memory.
struct ConvStates {
    static constexpr int OWN = CONV_CHANNELS * CONV_STATE;
    float floats[32 * OWN];

    // Lane l moves the pieces l, l + 32, ... of those below `pieces`.
    static __device__ __forceinline__ void fetch(float (&moved)[OWN], const float* from, int pieces) {
#pragma unroll
        for (int i = 0; i < CONV_STATE; i++)
            if (int piece = i * 32 + threadIdx.x % 32; piece < pieces)
                load_states((float (&)[CONV_CHANNELS])moved[i * CONV_CHANNELS], from + piece * CONV_CHANNELS);
    }
    __device__ __forceinline__ void deal(float (&past)[OWN], const float (&moved)[OWN]) {
        int lane = threadIdx.x % 32;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < OWN; i++) floats[(i / CONV_CHANNELS * 32 + lane) * CONV_CHANNELS + i % CONV_CHANNELS] = moved[i];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < OWN; i++) past[i] = floats[lane * OWN + i];
    }
    __device__ __forceinline__ void put(float* to, const float (&past)[OWN], int pieces) {
        int lane = threadIdx.x % 32;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < OWN; i++) floats[lane * OWN + i] = past[i];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < CONV_STATE; i++)
            if (int piece = i * 32 + lane; piece < pieces)
                store_states((const float (&)[CONV_CHANNELS])floats[piece * CONV_CHANNELS], to + piece * CONV_CHANNELS);
    }
};

// The convolution of one layer: a thread walks CONV_CHANNELS channels of the sequences that begin in CONV_COLUMNS
// columns.
extern "C" __global__ void __launch_bounds__(WALK_THREADS)
    convolve_columns(const io_t* __restrict__ xz, const Channels* __restrict__ channels, float* conv, i64 slot_size,
                     const int* __restrict__ begin, const int* __restrict__ after, io_t* __restrict__ u, i64 count) {
    int of_warp = (blockIdx.x * WALK_THREADS + threadIdx.x / 32 * 32) * CONV_CHANNELS, first = blockIdx.y * CONV_COLUMNS;
    int e = of_warp + threadIdx.x % 32 * CONV_CHANNELS, pieces = (E - of_warp) * CONV_STATE / CONV_CHANNELS;
    if (of_warp >= E) return;
    bool real = e < E;
    e = min(e, E - CONV_CHANNELS), conv += of_warp * CONV_STATE;
    ConvStates& states = ((ConvStates*)memory)[threadIdx.x / 32];

    struct Column {
        int after;
        bool last;
        float x[CONV_CHANNELS];
    };
    auto look = [&](int column) {
        Column found = {after[column], column + 1 >= count || begin[column + 1] >= 0};
        load_channels(found.x, xz + (column * E_TILES + e / TILE) * 2 * TILE + e % TILE);
        return found;
    };
    float moved[CONV_COLUMNS][ConvStates::OWN], taps[CONV_CHANNELS * W], bias[CONV_CHANNELS];
    Column ahead[CONV_COLUMNS];
    bool starts[CONV_COLUMNS];
#pragma unroll
    for (int i = 0; i < CONV_COLUMNS; i++) {
        int slot = first + i < count ? begin[first + i] : -1;
        starts[i] = slot >= 0;
        if (!starts[i]) continue;
        ConvStates::fetch(moved[i], conv + slot * slot_size, pieces);
        ahead[i] = look(first + i);
    }
    load_states(taps, channels[e / TILE].taps[e % TILE]);
    load_states(bias, channels[e / TILE].conv_bias + e % TILE);
#pragma unroll
    for (int i = 0; i < CONV_COLUMNS; i++) {
        if (!starts[i]) continue;
        float past[ConvStates::OWN];
        states.deal(past, moved[i]);
        Column here = ahead[i];
        for (int column = first + i;; here = look(++column)) {
            float y[CONV_CHANNELS];
#pragma unroll
            for (int c = 0; c < CONV_CHANNELS; c++) {
                auto& window = (float (&)[CONV_STATE])past[c * CONV_STATE];
                y[c] = convolve(window, here.x[c], taps + c * W, bias[c]);
                move_on(window, here.x[c]);
            }
            if (real) store_channels(u + place_of(column, e, E_SLICES), y);
            states.put(conv + here.after * slot_size, past, pieces);
            if (here.last) break;
        }
    }
}

constexpr int OWN = N_PITCH / PARTS;
constexpr int SCAN_CHANNELS = WALK_THREADS / PARTS;
constexpr int DT_PITCH = (R_OWN / 4 | 1) * 4;  // an odd number of quads: the parts' are on different banks
static_assert(PARTS == 4 && SCAN_COLUMNS % PARTS == 0 && SCAN_COLUMNS <= 32, "what the scan's lanes share");

// What a stretch of columns selected, as the lanes read it: dt's inputs part by part, and B and C, zero beyond N.
struct Selected {
    float dt[SCAN_COLUMNS][PARTS][DT_PITCH], B[SCAN_COLUMNS][N_PITCH], C[SCAN_COLUMNS][N_PITCH];

    __device__ __forceinline__ void fetch(const float* from, int columns) {
        constexpr int PIECE = R % 4 == 0 && N % 4 == 0 ? 4 : 1, EACH = (R_PITCH + 2 * N_PITCH) / PIECE;
        for (int i = threadIdx.x; i < columns * EACH; i += WALK_THREADS) {
            int column = i / EACH, k = i % EACH * PIECE, n = (k - R_PITCH) % N_PITCH;
            bool second = k >= R_PITCH + N_PITCH;
            float* to = k < R_PITCH ? dt[column][k / R_OWN] + k % R_OWN : (second ? C : B)[column] + n;
            const float* chosen = from + column * SELECT_PITCH + (k < R_PITCH ? k : R + (second ? N : 0) + n);
            copy_later<PIECE * 4>(to, chosen, k < R_PITCH || n < N);
        }
    }
};

// The states that sequences start from, on their way to the lanes; a lane's are its own affair.
struct States {
    float ring[SCAN_AHEAD + 1][PARTS][WALK_THREADS][OWN];

    __device__ __forceinline__ void fetch(int place, int j, const char* from) {
        constexpr int BYTES = OWN * 4 < 16 ? OWN * 4 : 16;
#pragma unroll
        for (int i = 0; i < OWN * 4; i += BYTES)
            copy_later<BYTES>((char*)ring[place][j][threadIdx.x] + i, from + i);
    }
};
struct ScanShared {
    __align__(16) Selected selected;
    __align__(16) States states;
};

// Of PARTS values, the one of the lane's own number, added over the PARTS lanes as `add_lanes` adds.
__device__ __forceinline__ float add_and_deal(const float (&v)[PARTS], int part) {
    bool odd = part & 1, upper = part & 2;
    float low = odd ? v[1] : v[0], high = odd ? v[3] : v[2];
    low += __shfl_xor_sync(ALL, odd ? v[0] : v[1], 1);
    high += __shfl_xor_sync(ALL, odd ? v[2] : v[3], 1);
    return (upper ? high : low) + __shfl_xor_sync(ALL, upper ? low : high, 2);
}

// Step sizes, scan and gate of one layer: PARTS neighbouring threads walk a channel of the sequences that begin in
// SCAN_COLUMNS columns, PARTS columns at a time. All four take their share of each column's sums and states; what is
// once in a column and channel, each takes for a column of its own.
extern "C" __global__ void __launch_bounds__(WALK_THREADS, SCAN_BLOCKS)
    scan_columns(const io_t* __restrict__ xz, const io_t* __restrict__ u, const float* __restrict__ selected,
                 const Channels* __restrict__ channels, float* ssm, i64 slot_size, const int* __restrict__ begin,
                 const int* __restrict__ after, io_t* __restrict__ y, i64 count) {
    ScanShared& s = *(ScanShared*)memory;
    int lane = threadIdx.x % 32, part = lane % PARTS, e = blockIdx.x * SCAN_CHANNELS + threadIdx.x / PARTS;
    bool real = E % SCAN_CHANNELS == 0 || e < E;
    e = min(e, E - 1);
    int first = blockIdx.y * SCAN_COLUMNS, last = (int)count - 1, place = 0, from, to;
    unsigned starts, ours;  // bits of the columns from here on: those that start from a slot, those of this block
    float h[OWN] = {}, u_mine, z_mine;

    u += place_of_input(e), y += place_of_input(e);
    const io_t* z = xz + (e / TILE * 2 + 1) * TILE + e % TILE;
    char* own_states = (char*)(ssm + (i64)e * N_PITCH + part * OWN);
    unsigned slot_bytes = (unsigned)slot_size * 4;
    auto look = [&] {
        from = lane < SCAN_COLUMNS && first + lane <= last ? begin[first + lane] : -1;
        to = after[min(first + lane, last)];
        starts = __ballot_sync(ALL, from >= 0);
    };
    auto state_of = [&](int slots, int column) {
        return own_states + (u64)(unsigned)__shfl_sync(ALL, slots, column) * slot_bytes;
    };
    auto ask = [&](int column, unsigned start) {  // for the states of PARTS columns, as one group
#pragma unroll
        for (int j = 0; j < PARTS; j++)
            if (start >> j & 1) s.states.fetch(place, j, state_of(from, column + j));
        end_group();
        place = place == SCAN_AHEAD ? 0 : place + 1;
    };
    auto ask_inputs = [&](int column) {
        int mine = min(first + column + part, last);
        u_mine = to_float(u[place_of_column(mine, E_SLICES)]), z_mine = to_float(z[mine * (E_TILES * 2 * TILE)]);
    };

    look();
    if (starts == 0) return;
    ours = 0u - (starts & 0u - starts);
    while (true) {
        int columns = min(SCAN_COLUMNS, last + 1 - first);
        if (columns < 32) ours &= (1u << columns) - 1;
        s.selected.fetch(selected + first * SELECT_PITCH, columns);
#pragma unroll
        for (int i = 0; i < SCAN_AHEAD; i++) ask(i * PARTS, starts >> i * PARTS);
        ask_inputs(0);
        const Channels& own = channels[e / TILE];
        StepWeights weights(own.dt[e % TILE], part);
        float bias = own.dt_bias[e % TILE], skip = own.skip[e % TILE], A[OWN];
        load_states(A, own.A[e % TILE] + part * OWN);
        bool goes_on = ours >> (SCAN_COLUMNS - 1) & 1 && first + SCAN_COLUMNS <= last && begin[first + SCAN_COLUMNS] < 0;
#pragma unroll 1
        for (int i = 0; i < columns && ours; i += PARTS, starts >>= PARTS, ours >>= PARTS) {
            ask(i + SCAN_AHEAD * PARTS, starts >> SCAN_AHEAD * PARTS);
            await_groups<SCAN_AHEAD>();
            if (i == 0) __syncthreads();
            float sums[PARTS], u_here = u_mine, z_here = z_mine;
#pragma unroll
            for (int j = 0; j < PARTS; j++) sums[j] = step_part(s.selected.dt[i + j][part], weights);
            float dt = step_size(add_and_deal(sums, part), bias);
            ask_inputs(i + PARTS);
#pragma unroll
            for (int j = 0; j < PARTS; j++) {
                float B[OWN], C[OWN];
                load_states(B, s.selected.B[i + j] + part * OWN), load_states(C, s.selected.C[i + j] + part * OWN);
                if (starts >> j & 1) load_states(h, s.states.ring[place][j][threadIdx.x]);
                sums[j] = advance(h, __shfl_sync(ALL, dt, j, PARTS), __shfl_sync(ALL, u_here, j, PARTS), B, C, A);
                char* state = state_of(to, i + j);
                if (real && ours >> j & 1) store_states(h, (float*)state);
            }
            float out = gated(add_and_deal(sums, part), u_here, z_here, skip);
            if (real && ours >> part & 1) y[place_of_column(first + i + part, E_SLICES)] = from_float(out);
        }
        await_groups<0>();
        if (!goes_on) return;
        __syncthreads();
        first += SCAN_COLUMNS;
        look();  // the columns until the next sequence starts are this block's
        ours = (starts & 0u - starts) - 1, starts = 0;
    }
}
