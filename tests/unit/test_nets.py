"""The nets' smaller parts."""

import torch

from dpsim.kernels.pair_attention import smooth_softmax


def test_smooth_softmax_is_one_over_more_entries_and_differentiates_twice():
    logits = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    longer = torch.cat([logits, logits.new_zeros(3, 2, 7)], -1)
    torch.testing.assert_close(smooth_softmax(logits, 7), torch.softmax(longer, -1)[..., :5])
    assert torch.autograd.gradcheck(lambda x: smooth_softmax(x, 7), logits)
    assert torch.autograd.gradgradcheck(lambda x: smooth_softmax(x, 7), logits)
