"""SOAP: what it is good for, its limits, and a state that is tensors only."""

import torch

from dpsim.train.soap import SOAP


def final_loss(kind: str, steps: int = 300) -> float:
    """0.5 (w - w*)^T H (w - w*) after some steps, H of condition 1000 with eigenvectors that mix all components."""
    g = torch.Generator().manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(20, 20, generator=g, dtype=torch.float64))
    hessian = q @ torch.diag(torch.logspace(0, -3, 20, dtype=torch.float64)) @ q.t()
    target = torch.randn(20, 5, generator=g, dtype=torch.float64)
    w = torch.zeros_like(target, requires_grad=True)
    optimizer = SOAP([w], lr=0.1) if kind == "soap" else torch.optim.Adam([w], lr=0.1, betas=(0.95, 0.95))
    loss = torch.zeros(())
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.01 ** (step / steps)
        optimizer.zero_grad()
        loss = 0.5 * ((w - target) * (hessian @ (w - target))).sum()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_beats_adam_where_directions_mix() -> None:
    assert final_loss("soap") < 0.01 * final_loss("adam")


def test_vectors_and_long_sides_are_adam() -> None:
    g = torch.Generator().manual_seed(1)
    for shape in ((7,), (400, 1)):
        ours = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        theirs = torch.ones(shape, dtype=torch.float64, requires_grad=True)
        soap = SOAP([ours], lr=0.01, betas=(0.9, 0.99), max_dim=300)
        adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
        ours.grad = torch.zeros_like(ours)
        soap.step()  # the first step only starts
        for _ in range(5):
            grad = torch.randn(shape, generator=g, dtype=torch.float64)
            ours.grad, theirs.grad = grad, grad
            soap.step()
            adam.step()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


def test_state_is_tensors() -> None:
    w = torch.randn(4, 6, requires_grad=True)
    optimizer = SOAP([w], lr=0.1)
    for _ in range(12):
        w.grad = torch.randn(4, 6)
        optimizer.step()
    state = optimizer.state[w]
    assert all(isinstance(v, torch.Tensor) and v.is_contiguous() for v in state.values())
    for side in (0, 1):
        q = state[f"basis_{side}"]
        torch.testing.assert_close(q.t() @ q, torch.eye(len(q)), atol=1e-5, rtol=0)
