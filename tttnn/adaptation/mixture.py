"""Two predictions mixed token by token, with weights that are learned online."""

import numpy as np
import numpy.typing as npt

from tttnn.errors import InputError


Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

# Weights of the other prediction that are tried, and their shares at the start: half for weight 0.
WEIGHTS = np.array([0.0, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 0.98])
SHARES = np.array([0.5] + [0.5 / 7] * 7)
SHARED = 0.005  # part of the shares that returns after each token: a text may stop repeating, and repeat later


def mix_online(
    base_nll: npt.ArrayLike, log_probabilities: npt.ArrayLike, groups: npt.ArrayLike, num_known: int
) -> Floats:
    """
    Mix other predictions into those of a model, with weights that are learned on earlier tokens only.

    A token has the probability `w * p_other + (1 - w) * p_base`, where `w` is fixed before the token is seen: if both
    are normalized, so is the mixture. Each group of tokens has a learner. It holds shares of eight weights, predicts
    with their mean, and multiplies each share by the probability that its weight gave to the token (Bayes); then a
    small part of the shares returns to the start. The learners and the base alone are mixed by Bayes too, from one
    half each; at the first scored token, the base alone gets one half back if it has less.

    The scored tokens cost at most `ln 2 = 0.69` nats (one bit) more than with the base alone, whatever the text, the
    other predictions and the prompt are. Proof: `a >= 1/2` is the share of the base alone at the first scored token;
    it gives the scored tokens the probability `M`, the learners `L`. By Bayes, the mixture gives
    `a * M + (1 - a) * L >= M / 2`.

    Args:
        base_nll (`np.ndarray`):
            The negative log-likelihood of each token in nats by the base, of shape `(tokens,)`.
        log_probabilities (`np.ndarray`):
            The log-probability of each token in nats by what is mixed in, for example from `NgramCache.read`.
        groups (`np.ndarray`):
            A whole number for each token that is known before it, of which it depends how far the other prediction is
            trusted: for a cache the match length, from `NgramCache.read`. Zeros if there is none.
        num_known (`int`):
            Tokens of the prompt: the first ones. Weights are learned on them before the first scored token.

    Returns:
        `np.ndarray`: the mixture's nll of each token, known ones too, in nats, of shape `(tokens,)`.

    Raises:
        `InputError`: If the arrays do not fit each other, or a value is impossible.

    Source: Herbster and Warmuth 1998, "Tracking the best expert" (shares that return); Bell, Cleary and Witten 1990.
    """
    nll, log_other, groups = _checked_arrays(base_nll, log_probabilities, groups, num_known=num_known)
    with np.errstate(divide="ignore"):  # weight 0 takes nothing from the other
        log_mixtures = np.logaddexp(np.log1p(-WEIGHTS) - nll[:, None], np.log(WEIGHTS) + log_other[:, None])
    shares_of = dict.fromkeys(groups.tolist(), SHARES)
    mixed = np.empty(len(nll))
    log_alone = log_learned = -np.log(2)
    for position, group in enumerate(groups.tolist()):
        if position == num_known and log_alone < log_learned:
            log_alone = log_learned = -np.log(2)
        joint = np.log(shares_of[group]) + log_mixtures[position]
        learned = np.logaddexp.reduce(joint)
        shares_of[group] = (1 - SHARED) * np.exp(joint - learned) + SHARED * SHARES
        log_alone, log_learned = log_alone - nll[position], log_learned + learned
        log_mixed = np.logaddexp(log_alone, log_learned)
        log_alone, log_learned = log_alone - log_mixed, log_learned - log_mixed
        mixed[position] = -log_mixed
    return mixed


def _checked_arrays(*arrays: npt.ArrayLike, num_known: int) -> tuple[Floats, Floats, Integers]:
    """Refuse arrays that do not fit each other, and values that no probability has."""
    nll, log_other, groups = map(np.asarray, arrays)
    if not (nll.ndim == 1 and nll.shape == log_other.shape == groups.shape):
        raise InputError(
            f"The nll, log-probabilities and groups have the shapes {nll.shape}, {log_other.shape} and "
            f"{groups.shape}, but each needs one value a token. Pass them for the same tokens."
        )
    if num_known not in range(len(nll) + 1):
        raise InputError(f"`num_known` is {num_known}, but there are {len(nll)} tokens. Pass 0 to {len(nll)}.")
    for name, values, sign in (("base_nll", nll, 1), ("log_probabilities", log_other, -1)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (sign * values > -1e-3)))  # rounding may pass probability 1
        if len(wrong):
            raise InputError(
                f"`{name}` is {values[wrong[0]]} at token {wrong[0]}, but a token has a probability above 0 and up to "
                f"1. Pass finite numbers, {'0 or more' if sign > 0 else '0 or less'}."
            )
    if len(groups) and (groups.dtype.kind not in "iu" or groups.min() < 0):
        raise InputError(f"`groups` holds {groups.min()}. Pass whole numbers of at least 0, one for each token.")
    return nll.astype(np.float64), log_other.astype(np.float64), groups.astype(np.int64)
