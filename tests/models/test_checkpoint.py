"""What is saved can be loaded, whatever memory the weights lie in."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grm_ray.models.checkpoint import save_causal_lm


def test_weights_that_are_views_of_one_buffer_are_saved(tiny_model, tmp_path):
    """ZeRO lays all trained weights into one flat buffer."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model)
    wanted = {name: weight.clone() for name, weight in lm.state_dict().items()}
    flat = torch.cat([parameter.detach().flatten() for parameter in lm.parameters()])
    for parameter, piece in zip(
        lm.parameters(), flat.split([p.numel() for p in lm.parameters()]), strict=True
    ):
        parameter.data = piece.view_as(parameter)
    save_causal_lm(lm, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "saved", "card")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, atol=0, rtol=0)
