"""What the constructor of a layer takes: the choices, and which of them go together."""

from __future__ import annotations

import sys

from vssn.utils.checks import require_choice, require_flag, require_number, require_size
from vssn_kernels.activations import ACTIVATIONS
from vssn_kernels.arguments import shown

CONTROLS = ("previous", "external", "both", "none")
INFERENCES = ("smoothing", "causal")
INITIAL_STATES = ("zeros", "learned", "inferred")
UNIVERSALS = ("point", "gaussian")


def check_sizes(
    input_size: object,
    hidden_size: int,
    latent_size: int,
    noise_size: int,
    mlp_size: int | None,
    backward_size: int | None,
) -> None:
    """Raises ValueError where the sizes are none, or would leave the model without a state."""
    require_size("input_size", input_size, 1)
    for name, size in (("hidden_size", hidden_size), ("latent_size", latent_size), ("noise_size", noise_size)):
        require_size(name, size, 0)
    if hidden_size == 0 and latent_size == 0:
        raise ValueError("hidden_size and latent_size must not both be 0: the model would have no state")
    if hidden_size == 0 and noise_size > 0:
        raise ValueError(f"noise_size must be 0 with hidden_size=0 (w acts through d), got {noise_size}")
    if hidden_size == 0 and (mlp_size is None or (backward_size is None and latent_size)):
        raise ValueError("mlp_size and backward_size must be given with hidden_size=0: their default is hidden_size")


def require_control(control: object, control_size: object) -> None:
    require_choice("control", control, CONTROLS)
    external = control in ("external", "both")
    require_size("control_size", control_size, 1 if external else 0)
    if not external and control_size:
        raise ValueError(f"control_size must be 0 with control={control!r}, got {control_size}")


def check_weights(
    activation: object, universal: object, prior_std: object, min_logvar: object, hidden_size: int
) -> None:
    """Raises ValueError or TypeError."""
    require_choice("activation", activation, ACTIVATIONS)
    require_choice("universal", universal, UNIVERSALS)
    if hidden_size == 0 and universal == "gaussian":
        raise ValueError("universal must be 'point' with hidden_size=0: there is no duration GRU")
    require_number("min_logvar", min_logvar)
    is_number = isinstance(prior_std, (int, float)) and not isinstance(prior_std, bool)
    if not (is_number and 0 < prior_std <= sys.float_info.max):  # type: ignore[operator]
        raise ValueError(f"prior_std must be a finite number above 0, got {shown(prior_std)}")


def initial_kind(initial_state: object, learn_initial_state: bool) -> str:
    """Of INITIAL_STATES. Raises ValueError for another, or where learn_initial_state says otherwise."""
    require_flag("learn_initial_state", learn_initial_state)
    if initial_state is None:
        return "learned" if learn_initial_state else "zeros"
    require_choice("initial_state", initial_state, INITIAL_STATES)
    if learn_initial_state and initial_state != "learned":
        raise ValueError(
            f"initial_state must be 'learned' with learn_initial_state=True, its older name, got {initial_state!r}; "
            "leave learn_initial_state out"
        )
    return str(initial_state)


def check_initial(kind: str, initial_size: object, hidden_size: int) -> None:
    """Raises ValueError where there is nothing to infer."""
    if hidden_size == 0 and kind == "inferred":
        raise ValueError("initial_state must be 'zeros' or 'learned' with hidden_size=0: there is no d_0 to infer")
    if initial_size is not None:
        require_size("initial_size", initial_size, 1)
        if kind != "inferred":
            raise ValueError(f"initial_size must be None unless initial_state='inferred', got {initial_size}")


def check_inference(inference: object, noise_smoothing: bool, kind: str) -> None:
    """Raises ValueError where what is to be causal looks ahead."""
    require_choice("inference", inference, INFERENCES)
    if inference == "causal" and (noise_smoothing or kind == "inferred"):
        ahead = "noise_smoothing=True" if noise_smoothing else "initial_state='inferred'"
        raise ValueError(f"inference must be 'smoothing' with {ahead}, which looks ahead, got 'causal'")
