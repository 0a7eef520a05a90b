"""Short names and classes of real kernels and operators."""

import time

import pytest

from cs_systems.tracing.classify import OP_CLASSES, is_fused_attention, op_class, short_name, shown_name
from cs_systems.tracing.trace import Kernel

ELEMENTWISE = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
    "at::detail::Array<char*, 3> >(int, at::native::CUDAFunctor_add<float>, at::detail::Array<char*, 3>)"
)
CUTLASS = (
    "void cutlass::Kernel2<cutlass_80_tensorop_s1688gemm_128x64_16x6_nn_align4>(cutlass_80_tensorop::Params)"
)
GEMV = "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, float, false>(Params<float>)"
SOFTMAX = "void (anonymous namespace)::softmax_warp_forward<float, float, 8, false>(float*, int)"
REDUCE = "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::f<float> > >(R)"
MULTI = "void at::native::<unnamed>::multi_tensor_apply_kernel<TensorListMetadata<4>, Op<(int)2>>(T, U)"
FLASH = (
    "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, cutlass::half_t> >(Flash_fwd_params)"
)


def kernel(name, op=None, kind="kernel"):
    return Kernel(name, 0, 1, 1, 1, 1, 0, 1, 7, kind, op)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (ELEMENTWISE, "vectorized_elementwise_kernel"),
        (ELEMENTWISE.replace("<4", "<(int)4"), "vectorized_elementwise_kernel"),
        (CUTLASS, "Kernel2"),
        (GEMV, "kernel"),
        (SOFTMAX, "softmax_warp_forward"),
        (MULTI, "multi_tensor_apply_kernel"),
        ("ampere_sgemm_128x64_tn", "ampere_sgemm_128x64_tn"),
        ("_softmax_kernel", "_softmax_kernel"),
        ("Memcpy HtoD", "Memcpy HtoD"),
        ("CUDA graph 4", "CUDA graph 4"),
        ("void f<A<B<(C)1>>>(D<E>, int (*)(int))", "f"),
        ("a<b", "a<b"), ("<x>", "<x>"), ("", ""), ("(", "("),
    ],
)  # fmt: skip
def test_short_names(name, short):
    assert short_name(name) == short


def test_templates_that_share_a_short_name_are_shown_by_their_argument():
    assert shown_name(kernel(CUTLASS)) == "cutlass_80_tensorop_s1688gemm_128x64_16x6_nn_align4"
    assert shown_name(kernel(ELEMENTWISE)) == "vectorized_elementwise_kernel"
    assert shown_name(kernel("Kernel2(Params)")) == "Kernel2"


def test_operators_and_copies_are_shown_as_they_are():
    assert shown_name(kernel("aten::mm", "aten::mm", "op")) == "aten::mm"
    assert shown_name(kernel("Memcpy HtoD", None, "copy")) == "Memcpy HtoD"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (CUTLASS, "matmul"), (GEMV, "matmul"), ("ampere_sgemm_128x64_tn", "matmul"),
        ("nvjet_hsh_128x256_NNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_tn", "matmul"), ("sm80_x_bf16_tensorop_y", "matmul"),
        (SOFTMAX, "softmax"), ("void cunn_SoftMaxForward<4>(float*)", "softmax"),
        ("_softmax_kernel", "softmax"),
        (REDUCE, "reduction"), ("vectorized_layer_norm_kernel", "reduction"),
        ("triton_red_fused_mean_0", "reduction"),
        (MULTI, "optimizer"), ("_adamw_kernel", "optimizer"),
        (ELEMENTWISE, "elementwise"), ("triton_poi_fused_add_0", "elementwise"),
        ("_swiglu_forward", "elementwise"),
        ("Memcpy HtoD", "copy"), ("Memset", "copy"), ("CatArrayBatchedCopy", "copy"),
        ("indexSelectLargeIndex", "other"), ("", "other"), (FLASH, "other"),
    ],
)  # fmt: skip
def test_classes_by_the_name_of_the_kernel(name, found):
    assert op_class(kernel(name)) == found
    assert op_class(kernel(name.upper())) == found or "::" in name


@pytest.mark.parametrize(
    ("op", "found"),
    [
        ("aten::mm", "matmul"), ("aten::bmm", "matmul"), ("aten::addmm", "matmul"),
        ("aten::linear", "matmul"),
        ("aten::_softmax", "softmax"), ("aten::_log_softmax_backward_data", "softmax"),
        ("aten::sum", "reduction"),
        ("aten::amax", "reduction"), ("aten::native_layer_norm", "reduction"), ("aten::mul_", "elementwise"),
        ("aten::add", "elementwise"), ("aten::exp", "elementwise"), ("aten::fill_", "elementwise"),
        ("aten::masked_fill_", "elementwise"), ("aten::rsqrt", "elementwise"), ("aten::copy_", "copy"),
        ("aten::_to_copy", "copy"), ("aten::clone", "copy"), ("aten::to", "copy"),
        ("aten::_foreach_add_", "optimizer"),
        ("aten::addcdiv_", "optimizer"), ("aten::_fused_adamw_", "optimizer"),
        # Views and random numbers have names that only look like the above.
        ("aten::expand", "other"), ("aten::normal_", "other"), ("aten::multinomial", "other"),
        ("aten::view", "other"),
        ("aten::division_like", "other"), ("aten::max_pool2d", "other"), ("aten::embedding", "other"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "other"),
    ],
)  # fmt: skip
def test_classes_by_the_operator(op, found):
    assert op_class(kernel(op, op, "op")) == found


def test_the_operator_says_it_first_and_the_name_when_it_says_nothing():
    assert op_class(kernel(ELEMENTWISE, "aten::_softmax")) == "softmax"
    assert op_class(kernel(ELEMENTWISE, "MyFunction")) == "elementwise"


def test_the_engine_of_autograd_is_not_what_it_calls():
    name = "autograd::engine::evaluate_function: SoftmaxBackward0"
    assert op_class(kernel(name, name, "op")) == "other"
    assert op_class(kernel(ELEMENTWISE, name)) == "elementwise"


def test_attention_in_one_kernel_is_known_by_name_or_operator():
    assert is_fused_attention(kernel(FLASH))
    assert is_fused_attention(kernel("x", "aten::_scaled_dot_product_cudnn_attention"))
    assert not is_fused_attention(kernel(SOFTMAX, "aten::_softmax"))


@pytest.mark.parametrize("part", ["<", "(", "a<b>", "sm1_", "::", "((", "<(", ") "])
def test_long_names_take_little_time(part):
    name = part * (100_000 // len(part))
    start = time.perf_counter()
    assert short_name(name)
    assert op_class(kernel(name)) in OP_CLASSES
    assert shown_name(kernel(name))
    assert time.perf_counter() - start < 2
