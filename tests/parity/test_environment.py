"""The native environment matrix against its reference: values, derivatives, instruction sets, errors."""

from ctypes import byref

import pytest
import torch

from dpsim.errors import ConfigError
from dpsim.kernels import native
from dpsim.kernels.environment import environment, environment_reference

RCUT, RCUT_SMTH = 6.0, 0.5
SETTINGS = [(6.0, 0.5, 0.0), (5.3, 5.0, 0.01), (7.0, 0.0, 0.0)]
SCALAR, BEST = 1, {"scalar": 1, "AVX2": 2, "AVX-512": 3}.get(native.capabilities().isa, 0)

needs_library = pytest.mark.skipif(native.capabilities().path is None, reason="the native library is not built")


def edges(n: int, low: float = 0.3, high: float = 1.05 * RCUT, seed: int = 0) -> torch.Tensor:
    """Edge vectors (n, 3), float64, with lengths spread evenly over [low, high] A."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return direction / direction.norm(dim=1, keepdim=True) * torch.linspace(low, high, n, dtype=torch.float64)[:, None]


def native_with_derivatives(edge_vec: torch.Tensor, settings: tuple[float, float, float], isa: int, threads: int = 1):
    """env, w, d_env, dw as the C library gives them for one instruction set."""
    n, new = len(edge_vec), edge_vec.new_empty
    env, w, d_env, dw = new(n, 4), new(n), new(n, 4, 3), new(n)
    function = getattr(native.library(), f"dpsim_environment_{native.SUFFIX[edge_vec.dtype]}")
    pointers = [t.data_ptr() for t in (env, w, d_env, dw)]
    native.check(function(n, edge_vec.data_ptr(), *settings, *pointers, byref(native.Execution(threads, isa))))
    return env, w, d_env, dw


def reference_with_derivatives(edge_vec: torch.Tensor, settings: tuple[float, float, float]):
    """The same from the reference, dw by contracting dw/d(edge_vec) with the unit vector."""
    edge_vec = edge_vec.clone().requires_grad_()
    env, w = environment_reference(edge_vec, *settings)
    d_env = torch.stack([torch.autograd.grad(env[:, c].sum(), edge_vec, retain_graph=True)[0] for c in range(4)], 1)
    unit = edge_vec / edge_vec.norm(dim=1, keepdim=True)
    dw = (torch.autograd.grad(w.sum(), edge_vec)[0] * unit).sum(1)
    return env.detach(), w.detach(), d_env, dw.detach()


@needs_library
@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("settings", SETTINGS)
def test_double_precision_agrees_with_the_reference(settings, isa):
    edge_vec = edges(1003)
    for got, expected in zip(
        native_with_derivatives(edge_vec, settings, isa), reference_with_derivatives(edge_vec, settings), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)


@needs_library
@pytest.mark.parametrize("isa", range(SCALAR, BEST + 1))
@pytest.mark.parametrize("low", [0.3, 0.98 * RCUT], ids=["all edges", "last 2 % before the cutoff"])
def test_single_precision_error_is_at_most_twice_that_of_the_reference(low, isa):
    """Relative rms error against float64, of every output, on positions that float32 holds exactly."""
    settings = (RCUT, RCUT_SMTH, 0.0)
    edge_vec = edges(20000, low, 0.99999 * RCUT).float()
    exact = reference_with_derivatives(edge_vec.double(), settings)
    got, reference = native_with_derivatives(edge_vec, settings, isa), reference_with_derivatives(edge_vec, settings)
    for name, e, g, r in zip(("env", "w", "d_env", "dw"), exact, got, reference, strict=True):
        scale = e.abs().reshape(len(e), -1).amax(1).clamp_min(1e-300)
        error = ((g - e).reshape(len(e), -1).norm(dim=1) / scale).square().mean().sqrt()
        allowed = ((r - e).reshape(len(e), -1).norm(dim=1) / scale).square().mean().sqrt()
        assert error <= 2 * allowed, f"{name}: {error:.2e} against {allowed:.2e} of the reference"


@needs_library
def test_switch_keeps_relative_accuracy_up_to_the_cutoff():
    """Of the float32 vectors as they are, w is right to 4e-7 even where rcut - r has lost most of its digits."""
    edge_vec = edges(5000, 0.9 * RCUT, 0.9999 * RCUT).float()
    _, w = environment(edge_vec, RCUT, RCUT_SMTH)
    _, exact = environment_reference(edge_vec.double(), RCUT, RCUT_SMTH)
    assert ((w - exact) / exact).abs().max() < 4e-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_edge_cases(dtype):
    """No edges; beyond the cutoff exactly zero; exactly at rcut_smth and rcut; a strided input."""
    env, w = environment(torch.zeros(0, 3, dtype=dtype), RCUT, RCUT_SMTH)
    assert env.shape == (0, 4) and w.shape == (0,)
    at = torch.tensor([[RCUT, 0, 0], [0, RCUT_SMTH, 0], [0, 0, 100.0]], dtype=dtype)
    env, w = environment(at, RCUT, RCUT_SMTH)
    assert w.tolist() == [0.0, 1.0, 0.0]
    assert env[0].abs().max() == 0 and env[2].abs().max() == 0 and env[1, 0] == 1 / RCUT_SMTH
    strided = edges(50).to(dtype)[::2]
    torch.testing.assert_close(environment(strided, RCUT, RCUT_SMTH), environment_reference(strided, RCUT, RCUT_SMTH))


def test_not_a_number_stays_one():
    env, w = environment(torch.full((70, 3), float("nan")), RCUT, RCUT_SMTH)
    assert env.isnan().all()


@needs_library
def test_many_threads_give_the_same_bits():
    edge_vec = edges(70001).float()
    for one, two in zip(
        native_with_derivatives(edge_vec, SETTINGS[0], 0, 1),
        native_with_derivatives(edge_vec, SETTINGS[0], 0, 2),
        strict=True,
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gradient_matches_finite_differences(settings):
    edge_vec = edges(40, 0.5, 0.99 * settings[0]).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: environment(e, *settings), (edge_vec,))


@pytest.mark.parametrize("outputs", [(0,), (1,), (0, 1)], ids=["env only", "switch only", "both"])
def test_double_backward_of_a_force_loss(outputs):
    """d loss(forces) / d parameter, where the parameter enters through the gradient that reaches the environment."""
    edge_vec = edges(300)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(300, 4, generator=generator).double(), torch.randn(300, generator=generator).double()]

    def parameter_gradient(function):
        x, theta = edge_vec.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        values = function(x, RCUT, RCUT_SMTH)
        energy = sum(torch.tanh(theta * weights[k].detach() * theta).mul(values[k]).sum() for k in outputs)
        (force,) = torch.autograd.grad(energy, x, create_graph=True)
        loss = (force**2).sum() + energy
        (first,) = torch.autograd.grad(loss, theta, create_graph=True)
        (second,) = torch.autograd.grad(first, theta)
        return first.detach(), second

    torch.testing.assert_close(parameter_gradient(environment), parameter_gradient(environment_reference))


@needs_library
def test_second_derivatives_in_the_edges_are_refused_or_right():
    def hessian_product(function, **options):
        x = edges(20).requires_grad_()
        (force,) = torch.autograd.grad((function(x, RCUT, RCUT_SMTH, **options)[0] ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad(force.sum(), x)[0]

    with pytest.raises(native.NativeError, match="second_order=True"):
        hessian_product(environment)
    expected = hessian_product(environment_reference)
    torch.testing.assert_close(hessian_product(environment, second_order=True), expected)


@pytest.mark.parametrize(
    "rcut, rcut_smth, protection", [(6, 6, 0), (6, -1, 0), (6, 7, 0), (float("nan"), 0, 0), (6, 0, -1)]
)
def test_cutoffs_that_are_no_switch_are_refused(rcut, rcut_smth, protection):
    with pytest.raises(ConfigError, match="rcut_smth"):
        environment(edges(3), rcut, rcut_smth, protection)


@needs_library
def test_the_library_refuses_bad_arguments():
    x = edges(3)
    with pytest.raises(native.NativeError, match="rcut_smth"):
        native_with_derivatives(x, (6.0, 6.0, 0.0), 0)
    with pytest.raises(native.NativeError, match="isa"):
        native_with_derivatives(x, SETTINGS[0], 17)
    with pytest.raises(native.NativeError, match="NULL"):
        native.check(native.library().dpsim_environment_f64(3, None, 6.0, 0.5, 0.0, None, None, None, None, None))


@needs_library
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_kernel_agrees_with_the_reference(dtype):
    if not native.capabilities().cuda:
        pytest.skip("the native library was built without CUDA kernels")
    x = edges(1003).to(dtype)
    expected = reference_with_derivatives(x, SETTINGS[0])
    on_gpu, outputs = x.cuda(), [torch.empty_like(t, device="cuda") for t in expected]
    function = getattr(native.library(), f"dpsim_environment_cuda_{native.SUFFIX[dtype]}")
    stream = torch.cuda.current_stream().cuda_stream
    native.check(function(len(x), on_gpu.data_ptr(), *SETTINGS[0], *(t.data_ptr() for t in outputs), stream))
    torch.cuda.synchronize()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-4
    for got, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(got.cpu(), wanted, rtol=tolerance, atol=tolerance)
