"""The three Triton kernels of FlashAttention-2: forward, dq, dk with dv. `flash_attention.py` launches them.

The algorithm and its names are those of `flash_attention_torch.py`; read that first. Here a program works on
one block of one head and holds one tile of scores, BLOCK_M queries by BLOCK_N keys, in registers. In forward
and dq it owns queries and walks over keys, in dk and dv it owns keys and walks over queries: every output has
one writer, nothing is added atomically, and results repeat to the last bit.

What keeps the tensor cores busy:
- exp is exp2, one instruction; scaling, log2(e) and subtracting the maximum are one multiply-add before it.
- Tiles that are seen whole compare no positions; only those on the diagonal or at a ragged end do. The same
  loop is compiled twice, without masks and with them. Tiles that nobody sees are not visited.
- Under a causal mask programs differ in length, and the longest start first.
- A head size such as 80 is split into powers of two, 64 + 16, where padding to 128 would waste 3/8 of the
  work. Rows of a tile are therefore a tuple of one or two pieces, which the first functions here deal with.
"""

# ruff: noqa: E741, because l is what the paper calls it.

import triton.language as tl

from cs_systems.kernels.language import cast, dot, jit

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@jit
def load_piece(
    pointer, row_stride, num_rows, FIRST: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """WIDTH columns, from FIRST on, of ROWS rows; zeros beyond HEAD_DIM, and beyond num_rows if RAGGED."""
    row, column = tl.arange(0, ROWS)[:, None], FIRST + tl.arange(0, WIDTH)[None, :]
    address = pointer + row * row_stride + column
    if RAGGED or FIRST + WIDTH > HEAD_DIM:
        return tl.load(address, mask=(row < num_rows) & (column < HEAD_DIM), other=0.0)
    else:
        return tl.load(address)


@jit
def load_rows(
    pointer, row_stride, num_rows, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """ROWS rows as a tuple of their pieces: D0 columns, and D1 more unless that is 0."""
    piece = load_piece(pointer, row_stride, num_rows, 0, D0, ROWS, HEAD_DIM, RAGGED)
    if D1 == 0:
        return (piece,)
    else:
        return piece, load_piece(pointer, row_stride, num_rows, D0, D1, ROWS, HEAD_DIM, RAGGED)


@jit
def load_vector(pointer, num_rows, other, ROWS: tl.constexpr, RAGGED: tl.constexpr):
    """One number a row for ROWS rows; `other` beyond num_rows if RAGGED."""
    row = tl.arange(0, ROWS)
    if RAGGED:
        return tl.load(pointer + row, mask=row < num_rows, other=other)
    else:
        return tl.load(pointer + row)


@jit
def store_piece(
    pointer, row_stride, num_rows, piece, FIRST: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Write columns of rows, rounded to the type of the memory."""
    row, column = tl.arange(0, ROWS)[:, None], FIRST + tl.arange(0, WIDTH)[None, :]
    address = pointer + row * row_stride + column
    tl.store(address, cast(piece, pointer.dtype.element_ty), mask=(row < num_rows) & (column < HEAD_DIM))


@jit
def store_rows(
    pointer, row_stride, num_rows, rows, factor, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    D0: tl.constexpr, D1: tl.constexpr,
):  # fmt: skip
    """Write rows * factor."""
    store_piece(pointer, row_stride, num_rows, rows[0] * factor, 0, D0, ROWS, HEAD_DIM)
    if D1 > 0:
        store_piece(pointer, row_stride, num_rows, rows[1] * factor, D0, D1, ROWS, HEAD_DIM)


@jit
def zero_rows(ROWS: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, ACC: tl.constexpr):
    """An accumulator for rows."""
    if D1 == 0:
        return (tl.zeros([ROWS, D0], ACC),)
    else:
        return tl.zeros([ROWS, D0], ACC), tl.zeros([ROWS, D1], ACC)


@jit
def scale_rows(rows, factor):
    """Each row times its own factor."""
    if len(rows) == 1:
        return (rows[0] * factor[:, None],)
    else:
        return rows[0] * factor[:, None], rows[1] * factor[:, None]


@jit
def add_weighted(acc, weights, rows, PRECISION: tl.constexpr):
    """acc + weights @ rows; the weights are rounded to the type of the rows."""
    weights = cast(weights, rows[0].dtype)
    if len(rows) == 1:
        return (dot(weights, rows[0], acc[0], PRECISION),)
    else:
        return dot(weights, rows[0], acc[0], PRECISION), dot(weights, rows[1], acc[1], PRECISION)


@jit
def inner_products(a, b, ACC: tl.constexpr, PRECISION: tl.constexpr):
    """a @ b.T of two tiles of rows."""
    products = dot(a[0], b[0].T, tl.zeros([a[0].shape[0], b[0].shape[0]], ACC), PRECISION)
    if len(a) == 2:
        products = dot(a[1], b[1].T, products, PRECISION)
    return products


@jit
def load_slope(slopes_ptr, head, HEAD_DIM: tl.constexpr, ACC: tl.constexpr):
    """The ALiBi slope of a head for scores that HEAD_DIM ** -0.5 is yet to scale; 0 without ALiBi."""
    if slopes_ptr is None:
        return 0.0
    else:
        return tl.load(slopes_ptr + head).to(ACC) * HEAD_DIM**0.5


@jit
def unscaled_scores(
    a, b, query, key, num_keys, slope,
    IS_CAUSAL: tl.constexpr, ALIBI: tl.constexpr, MASKED: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """a @ b.T plus ALiBi; -inf where a key is hidden or does not exist, if MASKED.

    query and key are positions that broadcast to the scores: a holds queries and b keys, or the other way.
    """
    s = inner_products(a, b, ACC, PRECISION)
    if ALIBI:
        s += slope * (key - query).to(ACC)
    if MASKED:
        visible = key < num_keys
        if IS_CAUSAL:
            visible = visible & (key <= query)
        s = tl.where(visible, s, -float("inf"))
    return s


@jit
def key_stretches(
    first_query, num_keys, IS_CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Ends of two stretches of keys: tiles that a block of queries sees whole, and the rest that it sees."""
    if IS_CAUSAL:
        whole_end = tl.minimum(first_query, num_keys) // BLOCK_N * BLOCK_N
        return whole_end, tl.minimum(first_query + BLOCK_M, num_keys)
    else:
        return num_keys // BLOCK_N * BLOCK_N, num_keys


@jit
def flash_forward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, slopes_ptr,
    q_batch_stride, q_head_stride, q_row_stride, k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride, o_batch_stride, o_head_stride, o_row_stride,
    num_heads, num_queries, num_keys,
    GROUP: tl.constexpr, IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head. GROUP query heads share a key head; lse is contiguous."""
    num_blocks = tl.cdiv(num_queries, BLOCK_M)
    block = tl.program_id(0) % num_blocks
    if IS_CAUSAL:
        block = num_blocks - 1 - block
    batch_head = (tl.program_id(0) // num_blocks).to(tl.int64)  # int64: a tensor may exceed 2^31 elements
    batch, head = batch_head // num_heads, batch_head % num_heads
    first_query = block * BLOCK_M
    row, queries_left = first_query.to(tl.int64), num_queries - first_query
    q_ptr += batch * q_batch_stride + head * q_head_stride + row * q_row_stride
    o_ptr += batch * o_batch_stride + head * o_head_stride + row * o_row_stride
    k_ptr += batch * k_batch_stride + head // GROUP * k_head_stride
    v_ptr += batch * v_batch_stride + head // GROUP * v_head_stride
    slope = load_slope(slopes_ptr, head, HEAD_DIM, ACC)
    scale: tl.constexpr = HEAD_DIM**-0.5 * LOG2_E

    q = load_rows(q_ptr, q_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, True)
    query = first_query + tl.arange(0, BLOCK_M)
    m = tl.full([BLOCK_M], -float("inf"), ACC)  # finite after the first tile, as all queries see key 0
    l = tl.zeros([BLOCK_M], ACC)
    acc = zero_rows(BLOCK_M, D0, D1, ACC)
    whole_end, end = key_stretches(first_query, num_keys, IS_CAUSAL, BLOCK_M, BLOCK_N)
    for MASKED in tl.static_range(2):
        for first_key in range(whole_end if MASKED else 0, end if MASKED else whole_end, BLOCK_N):
            row, keys_left = tl.cast(first_key, tl.int64), num_keys - first_key
            key = first_key + tl.arange(0, BLOCK_N)
            k = load_rows(
                k_ptr + row * k_row_stride, k_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, MASKED
            )
            s = unscaled_scores(
                q, k, query[:, None], key[None, :], num_keys, slope,
                IS_CAUSAL, slopes_ptr is not None, MASKED, ACC, PRECISION,
            )  # fmt: skip
            new_m = tl.maximum(m, tl.max(s, axis=1) * scale)
            p = tl.exp2(s * scale - new_m[:, None])
            alpha = tl.exp2(m - new_m)
            l = l * alpha + tl.sum(p, axis=1)
            v = load_rows(
                v_ptr + row * v_row_stride, v_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, MASKED
            )
            acc = add_weighted(scale_rows(acc, alpha), p, v, PRECISION)
            m = new_m

    l = tl.where(l == 0, 1.0, l)  # no keys at all: zeros
    store_rows(o_ptr, o_row_stride, queries_left, acc, 1 / l[:, None], BLOCK_M, HEAD_DIM, D0, D1)
    lse = (m + tl.log2(l)) * LN_2
    tl.store(lse_ptr + batch_head * num_queries + query, lse, mask=query < num_queries)


@jit
def flash_dq_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, do_ptr, lse_ptr, slopes_ptr, dq_ptr, lse2_ptr, delta_ptr,
    q_batch_stride, q_head_stride, q_row_stride, k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride, o_batch_stride, o_head_stride, o_row_stride,
    do_batch_stride, do_head_stride, do_row_stride, dq_batch_stride, dq_head_stride, dq_row_stride,
    num_heads, num_queries, num_keys,
    GROUP: tl.constexpr, IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dq of BLOCK_M queries of one head.

    It has everything at hand to leave two numbers a query for `flash_dkdv_kernel`, which would need them for
    every tile: lse2, the log-sum-exp in base 2, and delta = sum(o * do).
    """
    num_blocks = tl.cdiv(num_queries, BLOCK_M)
    block = tl.program_id(0) % num_blocks
    if IS_CAUSAL:
        block = num_blocks - 1 - block
    batch_head = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, head = batch_head // num_heads, batch_head % num_heads
    first_query = block * BLOCK_M
    row, queries_left = first_query.to(tl.int64), num_queries - first_query
    q_ptr += batch * q_batch_stride + head * q_head_stride + row * q_row_stride
    o_ptr += batch * o_batch_stride + head * o_head_stride + row * o_row_stride
    do_ptr += batch * do_batch_stride + head * do_head_stride + row * do_row_stride
    dq_ptr += batch * dq_batch_stride + head * dq_head_stride + row * dq_row_stride
    k_ptr += batch * k_batch_stride + head // GROUP * k_head_stride
    v_ptr += batch * v_batch_stride + head // GROUP * v_head_stride
    slope = load_slope(slopes_ptr, head, HEAD_DIM, ACC)
    scale: tl.constexpr = HEAD_DIM**-0.5 * LOG2_E

    o = load_rows(o_ptr, o_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, True)
    do = load_rows(do_ptr, do_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, True)
    delta = tl.sum(o[0].to(ACC) * do[0].to(ACC), axis=1)
    if len(o) == 2:
        delta += tl.sum(o[1].to(ACC) * do[1].to(ACC), axis=1)
    query = first_query + tl.arange(0, BLOCK_M)
    number = batch_head * num_queries + query
    # inf where there is no query makes its weights 0; a load of 0 could make them infinite.
    lse2 = tl.load(lse_ptr + number, mask=query < num_queries, other=float("inf")) * LOG2_E
    tl.store(lse2_ptr + number, lse2, mask=query < num_queries)
    tl.store(delta_ptr + number, delta, mask=query < num_queries)

    q = load_rows(q_ptr, q_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, True)
    dq = zero_rows(BLOCK_M, D0, D1, ACC)
    whole_end, end = key_stretches(first_query, num_keys, IS_CAUSAL, BLOCK_M, BLOCK_N)
    for MASKED in tl.static_range(2):
        for first_key in range(whole_end if MASKED else 0, end if MASKED else whole_end, BLOCK_N):
            row, keys_left = tl.cast(first_key, tl.int64), num_keys - first_key
            key = first_key + tl.arange(0, BLOCK_N)
            k = load_rows(
                k_ptr + row * k_row_stride, k_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, MASKED
            )
            v = load_rows(
                v_ptr + row * v_row_stride, v_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, MASKED
            )
            s = unscaled_scores(
                q, k, query[:, None], key[None, :], num_keys, slope,
                IS_CAUSAL, slopes_ptr is not None, MASKED, ACC, PRECISION,
            )  # fmt: skip
            p = tl.exp2(s * scale - lse2[:, None])
            dp = inner_products(do, v, ACC, PRECISION)
            ds = p * (dp - delta[:, None])
            dq = add_weighted(dq, ds, k, PRECISION)
    store_rows(dq_ptr, dq_row_stride, queries_left, dq, HEAD_DIM**-0.5, BLOCK_M, HEAD_DIM, D0, D1)


@jit
def flash_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse2_ptr, delta_ptr, slopes_ptr, dk_ptr, dv_ptr,
    q_batch_stride, q_head_stride, q_row_stride, k_batch_stride, k_head_stride, k_row_stride,
    v_batch_stride, v_head_stride, v_row_stride, do_batch_stride, do_head_stride, do_row_stride,
    dk_batch_stride, dk_head_stride, dk_row_stride, dv_batch_stride, dv_head_stride, dv_row_stride,
    num_kv_heads, num_queries, num_keys,
    GROUP: tl.constexpr, IS_CAUSAL: tl.constexpr, HEAD_DIM: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dk and dv of BLOCK_N keys of one key head, from all GROUP query heads that share it.

    Tiles are transposed, keys by queries, so that p and ds enter the next products as they are. The first
    keys are seen by the most queries, so the longest programs already come first.
    """
    num_blocks = tl.cdiv(num_keys, BLOCK_N)
    first_key = tl.program_id(0) % num_blocks * BLOCK_N
    batch_head = (tl.program_id(0) // num_blocks).to(tl.int64)
    batch, kv_head = batch_head // num_kv_heads, batch_head % num_kv_heads
    row, keys_left = first_key.to(tl.int64), num_keys - first_key
    k_ptr += batch * k_batch_stride + kv_head * k_head_stride + row * k_row_stride
    v_ptr += batch * v_batch_stride + kv_head * v_head_stride + row * v_row_stride
    dk_ptr += batch * dk_batch_stride + kv_head * dk_head_stride + row * dk_row_stride
    dv_ptr += batch * dv_batch_stride + kv_head * dv_head_stride + row * dv_row_stride
    scale: tl.constexpr = HEAD_DIM**-0.5 * LOG2_E

    k = load_rows(k_ptr, k_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, True)
    v = load_rows(v_ptr, v_row_stride, keys_left, BLOCK_N, HEAD_DIM, D0, D1, True)
    key = first_key + tl.arange(0, BLOCK_N)
    dk = zero_rows(BLOCK_N, D0, D1, ACC)
    dv = zero_rows(BLOCK_N, D0, D1, ACC)
    whole_end = num_queries // BLOCK_M * BLOCK_M
    first_visible, diagonal_end = 0, 0
    if IS_CAUSAL:
        first_visible = first_key // BLOCK_M * BLOCK_M
        diagonal_end = tl.minimum(tl.cdiv(first_key + BLOCK_N, BLOCK_M) * BLOCK_M, whole_end)
    for STRETCH in tl.static_range(3):  # on the diagonal, all these keys visible, the ragged end
        if STRETCH == 0:
            start, end = first_visible, diagonal_end
        elif STRETCH == 1:
            start, end = diagonal_end, whole_end
        else:
            start, end = tl.maximum(first_visible, whole_end), num_queries
        num_tiles = tl.cdiv(tl.maximum(end - start, 0), BLOCK_M)
        for i in range(GROUP * num_tiles):  # one loop over heads and tiles: loads run ahead across heads
            member = i // num_tiles if GROUP > 1 else 0
            head = kv_head * GROUP + member
            first_query = start + (i - member * num_tiles) * BLOCK_M
            row, queries_left = tl.cast(first_query, tl.int64), num_queries - first_query
            query = first_query + tl.arange(0, BLOCK_M)
            q = load_rows(
                q_ptr + batch * q_batch_stride + head * q_head_stride + row * q_row_stride,
                q_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, STRETCH == 2,
            )  # fmt: skip
            s = unscaled_scores(
                k, q, query[None, :], key[:, None], num_keys, load_slope(slopes_ptr, head, HEAD_DIM, ACC),
                IS_CAUSAL, slopes_ptr is not None, STRETCH != 1, ACC, PRECISION,
            )  # fmt: skip
            number = (batch * num_kv_heads * GROUP + head) * num_queries + first_query
            # As in dq, inf makes the weights of queries that do not exist 0.
            lse2 = load_vector(lse2_ptr + number, queries_left, float("inf"), BLOCK_M, STRETCH == 2)
            p = tl.exp2(s * scale - lse2[None, :])
            do = load_rows(
                do_ptr + batch * do_batch_stride + head * do_head_stride + row * do_row_stride,
                do_row_stride, queries_left, BLOCK_M, HEAD_DIM, D0, D1, STRETCH == 2,
            )  # fmt: skip
            dv = add_weighted(dv, p, do, PRECISION)
            dp = inner_products(v, do, ACC, PRECISION)
            delta = load_vector(delta_ptr + number, queries_left, 0.0, BLOCK_M, STRETCH == 2)
            ds = p * (dp - delta[None, :])
            dk = add_weighted(dk, ds, q, PRECISION)
    store_rows(dk_ptr, dk_row_stride, keys_left, dk, HEAD_DIM**-0.5, BLOCK_N, HEAD_DIM, D0, D1)
    store_rows(dv_ptr, dv_row_stride, keys_left, dv, 1.0, BLOCK_N, HEAD_DIM, D0, D1)
