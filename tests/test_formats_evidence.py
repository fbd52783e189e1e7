"""What libraries print of their products, and what the names of CUDA kernels tell: read as they
stand, and never guessed."""

import pytest

from precision_explorer.formats.evidence import (
    NATIVE,
    SOFTWARE,
    UNKNOWN,
    cuda_product,
    mkl_product,
    onednn_product,
    products_of,
)


def line(kind="matmul", implementation="brg_matmul:avx512_core", memory="", attributes="", **more):
    problem = more.get("problem", "128x576:576x1536")
    fields = [kind, implementation, "undef", memory, attributes, "", problem, "0.5"]
    return "onednn_verbose,v1,primitive,exec,cpu," + ",".join(fields)


def memory(src, wei):
    return f"src:{src}::blocked:ab::f0 wei:{wei}::blocked:ba::f0 dst:f32::blocked:ab::f0"


@pytest.mark.parametrize(
    ("types", "implementation", "number_type", "unit"),
    [
        (("f32", "f32"), "jit:avx2", "float32", NATIVE),
        (("f32", "f32"), "ref:any", "float32", NATIVE),
        (("bf16", "bf16"), "brg_matmul:avx512_core_bf16", "bfloat16", NATIVE),
        (("bf16", "bf16"), "brg_matmul:avx10_1_512_amx", "bfloat16", NATIVE),
        (("bf16", "bf16"), "brg_matmul:avx512_core", "bfloat16", SOFTWARE),
        (("bf16", "bf16"), "brg_matmul:avx2_vnni_2", "bfloat16", SOFTWARE),
        (("bf16", "bf16"), "ref:any", "bfloat16", SOFTWARE),
        (("f16", "f16"), "brg_matmul:avx512_core_fp16", "float16", NATIVE),
        (("f16", "f16"), "brg_matmul:avx512_core_bf16", "float16", SOFTWARE),
        (("u8", "s8"), "brg_matmul:avx512_core_vnni", "int8", NATIVE),
        (("s8", "s8"), "brg_matmul:avx2_vnni", "int8", NATIVE),
        (("u8", "s8"), "gemm:jit:avx2", "int8", NATIVE),
        (("u8", "s8"), "ref_int8:any", "int8", SOFTWARE),
        (("u8", "s8"), "", "int8", UNKNOWN),
        # Weights that are stored narrower and widened.
        (("f32", "s8"), "brg_matmul:avx512_core", "float32", NATIVE),
        (("bf16", "s8"), "brg_matmul:avx512_core_bf16", "bfloat16", NATIVE),
        # Not understood: no number type that anyone has heard of, or two that do not go together.
        (("x3", "x3"), "brg_matmul:avx512_core", UNKNOWN, UNKNOWN),
        (("u8", "bf16"), "brg_matmul:avx512_core", UNKNOWN, UNKNOWN),
    ],
)
def test_onednn_lines(types, implementation, number_type, unit):
    product = onednn_product(line(implementation=implementation, memory=memory(*types)))
    assert (product.number_type, product.unit) == (number_type, unit)
    assert product.flops == 2 * 128 * 576 * 1536
    assert product.sizes == (576, 1536)
    assert implementation in product.kernel


@pytest.mark.parametrize(
    ("attributes", "number_type"),
    [
        ("attr-fpmath:bf16", "bfloat16"),
        ("attr-fpmath:tf32", "tf32"),
        ("attr-fpmath:strict", "float32"),
        ("attr-fpmath:any", UNKNOWN),
        ("attr-scratchpad:user", "float32"),
    ],
)
def test_float32_that_may_be_rounded_is_not_float32(attributes, number_type):
    """ONEDNN_DEFAULT_FPMATH_MODE lets float32 products be made in fewer bits."""
    product = onednn_product(line(memory=memory("f32", "f32"), attributes=attributes))
    assert product.number_type == number_type


def test_sizes_of_onednn_problems():
    types = memory("f32", "f32")
    assert onednn_product(line(memory=types, problem="3x8x4:3x4x5")).flops == 2 * 3 * 8 * 4 * 5
    inner = line(kind="inner_product", memory=types, problem="mb2ic3ih1iw4oc5")
    assert onednn_product(inner).flops == 2 * 2 * 3 * 1 * 4 * 5
    assert onednn_product(line(memory=types, problem="g1mb2_x")).flops is None


def test_gemm_api_and_a_time_stamp():
    text = (
        "onednn_verbose,v1,1732.5,primitive,exec,cpu,gemm_api,,undef,src_s8::blocked:ab:f0 "
        "wei_s8::blocked:ba:f0 dst_s32::blocked:ab:f0,,,4x5:5x6,0.1"
    )
    product = onednn_product(text)
    assert (product.number_type, product.flops) == ("int8", 2 * 4 * 5 * 6)


def test_other_lines_tell_of_no_product():
    for text in (
        "onednn_verbose,v1,info,cpu,isa:Intel AVX2",
        line(kind="reorder"),
        line(kind="softmax"),
        "onednn_verbose,v1,primitive,create:cache_miss,cpu,matmul,jit:avx2,undef,,,,1x1:1x1,0.1",
        "MKL_VERBOSE oneMKL 2024.0 Update 2 Product build",
        "MKL_VERBOSE VSEXP(4,0x1) 1us",
        "anything else",
        "",
    ):
        assert products_of(text) == []


@pytest.mark.parametrize(
    ("call", "number_type", "unit", "flops"),
    [
        ("SGEMM(T,N,9,8,7,0x7f,0x7f,7,0x55,7,0x7f,0x55,9)", "float32", NATIVE, 2 * 9 * 8 * 7),
        ("SGEMV(T,576,1536,0x7f,0x55,576,0x55,1,0x7f,0x55,1)", "float32", NATIVE, 2 * 576 * 1536),
        ("GEMM_BF16BF16F32(N,N,4,5,6,0x7f)", "bfloat16", UNKNOWN, 240),
        ("GEMM_S8U8S32(N,N,F,4,5,6,0x7f)", "int8", UNKNOWN, 240),
        ("SGEMM_COMPUTE(T,P,4,5,6,0x7f)", "float32", NATIVE, 240),
        ("SGEMM_BATCH(0x7f,0x7f,2,3,4)", "float32", NATIVE, None),
        ("XGEMM(N,N,4,5,6)", UNKNOWN, UNKNOWN, 240),
    ],
)  # fmt: skip
def test_mkl_lines(call, number_type, unit, flops):
    """The sizes of `SGEMM(..., columns, rows, depth)`, told by columns."""
    product = mkl_product(f"MKL_VERBOSE {call} 1.28ms CNR:OFF Dyn:0 FastMM:1 TID:0  NThr:2")
    assert (product.number_type, product.unit, product.flops) == (number_type, unit, flops)


@pytest.mark.parametrize(
    ("name", "number_type"),
    [
        ("sm80_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize32x32x8_cublas", "tf32"),
        ("sm80_xmma_gemm_f32f32_f32f32_f32_tn_n_tilesize32x32x8_ffma_cublas", "float32"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_cublas", "bfloat16"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_cublas", "float16"),
        ("sm90_xmma_gemm_e4m3bf16_e4m3f32_f32_tn_n_tilesize128x128x128", "float8_e4m3fn"),
        ("sm80_xmma_gemm_i8i8_i8i32_f32_tn", "int8"),
        ("nvjet_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "bfloat16"),
        ("nvjet_sm100_tst_64x16_64x16_2x4_2cta_h_bz_splitK_TNT", "bfloat16"),
        ("nvjet_hsh_256x128_64x4_1x2_h_bz_coopA_TNT", "float16"),
        ("nvjet_xyz_256x128", UNKNOWN),
        ("nvjet_sm90_tst_64x8_64x16_4x1_v_bz_splitK_TNT", "bfloat16"),
        ("nvjet_sm90_tss_128x272_64x4_2x1_v_bz_coopA_TNT", "bfloat16"),
        ("nvjet_sm90_hss_320x128_64x3_1x2_h_bz_coopB_NNT", "float16"),
        ("nvjet_sm90_qqtst_128x128_128x6_1x2_h_bz_ovscale_bias_TNT", "float8_e4m3fn"),
        ("nvjet_qqtst_112x128_128x7_2x1_v_bz_coopA_algo2_TNN", "float8_e4m3fn"),
        ("nvjet_sm100_ootst_256x128_256x4_2x1_2cta_h_bz_Avec16UE4M3_Bvec16UE4M3_TNT",
         "float4_e2m1fn"),
        ("nvjet_sm90_sss_tf32_128x256_32x4_1x2_h_bz_TNT", "tf32"),
        ("nvjet_sm90_bii_128x256_128x4_2x1_v_bz_TNT", "int8"),
        # Factors of two types: neither label fits.
        ("nvjet_sm90_rqtst_128x256_128x5_2x1_v_bz_TNT", UNKNOWN),
        ("sm89_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n_tilesize64x64x64", "float8_e4m3fn"),
        ("sm89_xmma_gemm_e4m3e5m2bf16_e4m3e5m2f32_f32_tn_n_tilesize64x64x64", UNKNOWN),
        ("sm90_xmma_gemm_bf16f32_bf16f32_f32_tn_n_tilesize64x64x64", "bfloat16"),
        ("sm90_xmma_gemm_i8i32_i8i32_i32_tn_n_tilesize256x128x128_warpgroupsize2x1x1", "int8"),
        ("cutlass3x_sm100_tensorop_s128x64x32gemm_e4m3_e4m3_f32_bf16_bf16_64x64x128",
         "float8_e4m3fn"),
        ("cutlass3x_sm90_tensorop_s64x128x16gemm_bf16_bf16_f32_void_bf16_128x128x64", "bfloat16"),
        ("cutlass3x_sm90_tensorop_s64x128x16gemm_f16_f16_f32_bf16_bf16_128x128x64", "float16"),
        ("cutlass_80_wmma_tensorop_f16_s161616gemm_f16_32x32_128x2_tn_align8", "float16"),
        ("void gemvNSP_kernel<__nv_bfloat16, __nv_bfloat16, __nv_bfloat16, float, 1, 32, 4, 1024, "
         "false, cublasGemvParamsEx<int> >(cublasGemvParamsEx<int>)", "bfloat16"),
        ("void gemvNSP_kernel<float, float, float, float, 1, 32, 4, 1024, false, X>(X)", "float32"),
        ("std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16, "
         "__nv_bfloat16, __nv_bfloat16, float, false, true, true, false, 7, false, X>(X)",
         "bfloat16"),
        ("void gemv2T_kernel_val<int, int, __half, __half, __half, float, 128, 16, 4, 4, false, X>",
         "float16"),
        ("void gemmk1_kernel<int, float, 256, 5, false, false, false, false, X>(X)", "float32"),
        ("void gemmSN_kernel_int32<256, 16, 4, 8, 4, 4, false, 1, X>(X)", "int8"),
        ("void gemmSN_TN_kernel_half<128, 2, 2, 4, 1, X>(X)", "float16"),
        ("void gemmSN_NN_kernel<float, 256, 4, 2, 8, 3, 4, false, X>(X)", "float32"),
        ("void at::native::tinygemm_m16n8k16_chunk_kernel<at::native::ALayout_RM<(at::native::"
         "KReductionType)0>, at::native::BLayout_TC_int4<8, 128>>(void const*)", "bfloat16"),
        ("void gemm_4bit_simt<__nv_bfloat16, 1>(__nv_bfloat16 const*)", "bfloat16"),
        ("void gemm_4bit_sm80_m16n8k16<__half, 64, 128>(__half const*)", "float16"),
        ("triton_tem_fused__int_mm_mul_3", "int8"),
        ("triton_tem_fused_mm_5", UNKNOWN),
        # A row times a matrix, rewritten into a sum: a product, in a type that no name tells.
        ("triton_red_fused__to_copy_mm_mul_2", UNKNOWN),
        ("ampere_sgemm_128x64_tn", "float32"),
        ("ampere_bf16_s16816gemm_bf16_128x128_ldg8_f2f_stages_32x1_nn", "bfloat16"),
        ("cutlass_75_tensorop_bf16_s1688gemm_bf16_256x128_nn_align1", "bfloat16"),
        ("cutlass_80_tensorop_f16_s16816gemm_relu_f16_128x128_32x4_tn_align8", "float16"),
        ("cutlass_80_tensorop_i16832gemm_s8_256x128_64x3_tn_align16", "int8"),
        ("cutlass_tensorop_s1688tf32gemm_256x128_16x3_nn_align4", "tf32"),
        ("cutlass_80_tensorop_s1688gemm_128x256_16x3_tn_align4", "tf32"),
        ("void cutlass::device_kernel<X<cutlass::float_e4m3_t, float_e4m3_t>>", "float8_e4m3fn"),
        # One factor of e4m3 alone is no product in e4m3.
        ("void cutlass::device_kernel<X<cutlass::bfloat16_t, Y, cutlass::float_e4m3_t>>", UNKNOWN),
        ("triton_tem_fused_addmm_3_gemm", UNKNOWN),
        ("my_int8_gemm", UNKNOWN),
    ],
)  # fmt: skip
def test_cuda_names(name, number_type):
    product = cuda_product(name)
    assert product.number_type == number_type
    assert product.unit == (UNKNOWN if number_type == UNKNOWN else NATIVE)


def test_a_kernel_is_named_without_its_templates():
    name = "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __half, X>(X)"
    assert cuda_product(name).kernel == "CUDA internal::gemvx::kernel"
    assert cuda_product("void gemmk1_kernel<int, float, 256>(X)").kernel == "CUDA gemmk1_kernel"
    name = "cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_64x64_32x6_tn_align8"
    assert cuda_product(f"void cutlass::Kernel2<{name}>(X::Params)").kernel == f"CUDA {name}"


def test_kernels_that_make_no_product():
    for name in (
        "void at::native::vectorized_elementwise_kernel<4, float>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, float>",
        "Memcpy DtoD (Device -> Device)",
        "softmax_warp_forward",
        # Attention's: they multiply, but no layer's weights.
        # Inductor's, named by the products whose operands they lay out or scale.
        "triton_poi_fused__scaled_mm__to_copy_abs_clamp_clone_max_mul_reciprocal_2",
        "triton_red_fused__scaled_mm__to_copy_abs_amax_0",
        "triton_poi_fused__int_mm_round_1",
        "triton_red_fused_add_matmul_mean_pow_4",
        "fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel<cutlass>)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128",
    ):
        assert cuda_product(name) is None
