"""Ensembles, and checkpoints from which they can be rebuilt without running anything from the file.

A checkpoint is two files: `name.safetensors` with the weights and, in its header, a description of the
ensemble and a digest of both; `name.json` with the same description for readers. The weights file alone says
what is loaded; the sidecar must agree with it, so that files of two different saves are told apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional

from empirical.files import json_text, parse_json, write_bytes, write_json
from empirical.models import Classifier, ModelConfig, build_model

SCHEMA = "transferbounds-checkpoint/1"
_HEADER_KEY = "transferbounds"


class CheckpointError(ValueError):
    """A file that is not, or no longer, what was saved; the message is one line."""


@dataclass(frozen=True)
class Vote:
    """How the members' logits become one prediction.

    Attributes:
        of: What is combined: `probabilities` (the weighted mean of the softmax outputs) or `logits` (the
            softmax of their weighted sum, as additive models have it).
        weights: One number >= 0 for each member, not all 0, or None for equal votes. A mean divides by their
            sum, a sum does not.

    Raises:
        ValueError: If a value is not admissible.
    """

    of: str = "probabilities"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.of not in ("probabilities", "logits"):
            raise ValueError(f"expected a vote of probabilities or logits, got {self.of!r}")
        if self.weights is None:
            return
        object.__setattr__(self, "weights", tuple(self.weights))
        if not all(math.isfinite(weight) and weight >= 0 for weight in self.weights) or not any(self.weights):
            raise ValueError(f"expected finite weights >= 0, not all 0, of a vote, got {self.weights}")

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Log-probabilities (n, K) from the members' logits (N, n, K), kept in log space throughout."""
        weights = logits.new_tensor([1.0] * len(logits) if self.weights is None else self.weights)
        column = weights[:, None, None]
        if self.of == "logits":
            return functional.log_softmax((column * logits).sum(0), dim=-1)
        log_probabilities = functional.log_softmax(logits, dim=-1) + column.log()
        return torch.logsumexp(log_probabilities, dim=0) - weights.sum().log()


class Ensemble(nn.Module):
    """Members that vote, by default with the mean of their softmax probabilities.

    Args:
        members: Classifiers of one input shape and one number of classes.
        vote: How they vote.

    Raises:
        ValueError: If there are no members, they differ in what they take or give, or there is not one weight
            of the vote for each.
    """

    def __init__(self, members: Iterable[nn.Module], vote: Vote | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.vote = vote or Vote()
        if not len(self.members):
            raise ValueError("expected at least one member in an ensemble, got none")
        kinds = {(member.shape, member.classes) for member in self.members if isinstance(member, Classifier)}
        if len(kinds) > 1:
            raise ValueError(f"expected members of one shape and number of classes, got {sorted(kinds)}")
        weights = self.vote.weights
        if weights is not None and len(weights) != len(self.members):
            raise ValueError(f"expected {len(self.members)} weights of the vote, got {len(weights)}")

    def forward(self, x: Tensor) -> Tensor:
        """Log-probability of each class, shape (n, K)."""
        return self.vote.log_probabilities(torch.stack([member(x) for member in self.members]))


def save_checkpoint(path: str | os.PathLike[str], ensemble: Ensemble, metadata: Mapping[str, Any]) -> None:
    """Save an ensemble as `path` (.safetensors) and a sidecar of the same name with .json, each atomically.

    Args:
        path: The weights file, whose name ends in .safetensors.
        ensemble: Members made by `build_model`; how each was built is stored by itself.
        metadata: What else belongs to the run (dataset, training config, versions, metrics), strict JSON.

    Raises:
        CheckpointError: If the path ends otherwise, a member was not made by `build_model`, or a weight is
            NaN or infinite (a broken state must not replace a good checkpoint).
        ValueError: If the metadata holds NaN or an infinity.
        TypeError: If the metadata holds something that JSON has no type for.
        OSError: If the folder cannot be written to.
    """
    path = Path(path)
    sidecar = _sidecar(path)
    members = [_description(member) for member in ensemble.members]
    tensors = _on_host(ensemble.state_dict())
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(f"expected finite weights to save, got NaN or infinity in {name}")
    vote = asdict(ensemble.vote)
    description = _plain({"schema": SCHEMA, "members": members, "vote": vote, "metadata": dict(metadata)})
    described = {**description, "digest": _digest(tensors, description)}
    # While "replaces" stands, the sidecar fits the previous weights too: a crash at any point of these three
    # writes leaves a pair of files that loads, the previous checkpoint or the new one.
    write_json(sidecar, {**described, "replaces": _digest_on_disk(path)})
    save_tensors(path, tensors, description)
    write_json(sidecar, described)


def load_checkpoint(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[Ensemble, dict[str, Any]]:
    """Rebuild an ensemble from its files alone.

    Args:
        path: The weights file; the sidecar lies beside it.
        device: Where the weights go.

    Returns:
        The ensemble in evaluation mode, and the metadata that it was saved with.

    Raises:
        CheckpointError: If a file is missing, truncated, changed or foreign, the two files belong to
            different saves, or a weight is missing, unknown, of the wrong shape, NaN or infinite.
    """
    path = Path(path)
    sidecar = _sidecar(path)
    tensors, description = load_tensors(path)
    _check_schema(path, description)
    _check_sidecar(path, sidecar, description, _digest(tensors, description))
    ensemble = _rebuild(path, description)
    _check_weights(path, ensemble.state_dict(), tensors)
    ensemble.load_state_dict(tensors, assign=True)
    return ensemble.to(device).eval(), description.get("metadata", {})


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> None:
    """Save named tensors, strict-JSON metadata and a digest of both in one safetensors file, atomically.

    Raises:
        ValueError: If the metadata holds NaN or an infinity.
        TypeError: If the metadata holds something that JSON has no type for.
        OSError: If the folder cannot be written to.
    """
    tensors, metadata = _on_host(tensors), _plain(metadata)
    header = json_text({"digest": _digest(tensors, metadata), "metadata": metadata})
    write_bytes(path, safetensors.torch.save(tensors, {_HEADER_KEY: header}))


def load_tensors(
    path: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Load what `save_tensors` saved, checked against its digest.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        CheckpointError: If the file is missing, truncated, changed, or was not written by `save_tensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"expected a checkpoint at {path}, found no such file")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"expected a safetensors file at {path}, got a truncated or foreign one ({reason})"
        ) from None
    digest, metadata = _parse_header(path, header)
    if (actual := _digest(tensors, metadata)) != digest:
        raise CheckpointError(
            f"expected weights with digest {digest[:12]} in {path}, got {actual[:12]}: the file is corrupt"
        )
    # Copies: the tensors that safetensors gives are views of the file and would change or fault with it.
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}, metadata


def _plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as it will be read back: tuples become lists, keys strings."""
    return parse_json(json_text(dict(metadata)))


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> str:
    """SHA-256 over the metadata and the names, types, shapes and contents of the tensors."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sidecar(path: Path) -> Path:
    if path.suffix != ".safetensors":
        raise CheckpointError(f"expected a checkpoint path that ends in .safetensors, got {path}")
    return path.with_suffix(".json")


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def _description(member: nn.Module) -> dict[str, Any]:
    if not isinstance(member, Classifier) or not hasattr(member, "config"):
        raise CheckpointError(f"expected members made by build_model, got {type(member).__name__}")
    return {"config": asdict(member.config), "shape": list(member.shape), "classes": member.classes}


def _digest_on_disk(path: Path) -> str | None:
    """Digest of the file that is about to be replaced, if there is a sound one."""
    try:
        return _digest(*load_tensors(path))
    except CheckpointError:
        return None


def _parse_header(path: Path, header: str | None) -> tuple[str, dict[str, Any]]:
    if header is None:
        raise CheckpointError(f"expected a {_HEADER_KEY} header in {path}, got a foreign safetensors file")
    try:
        content = parse_json(header)
        digest, metadata = str(content["digest"]), dict(content["metadata"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"expected a digest and metadata in the header of {path}, got {error!r}"
        ) from None
    return digest, metadata


def _check_schema(path: Path, description: Any) -> None:
    schema = description.get("schema") if isinstance(description, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(f"expected schema {SCHEMA} in {path}, got {schema!r}")


def _check_sidecar(path: Path, sidecar: Path, description: Mapping[str, Any], digest: str) -> None:
    if not sidecar.is_file():
        raise CheckpointError(f"expected the sidecar {sidecar} beside {path.name}, found no such file")
    try:
        content = parse_json(sidecar.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"expected strict JSON in {sidecar}, got {error}") from None
    _check_schema(sidecar, content)
    if digest == content.get("digest"):
        if changed := [key for key, value in description.items() if content.get(key) != value]:
            raise CheckpointError(f"expected the {changed[0]} stored in {path.name}, got others in {sidecar}")
    elif digest != content.get("replaces"):
        raise CheckpointError(
            f"expected weights with digest {str(content.get('digest'))[:12]} in {path} by {sidecar.name}, "
            f"got {digest[:12]}: the two files come from different saves"
        )


def _rebuild(path: Path, description: Mapping[str, Any]) -> Ensemble:
    """The ensemble without its weights: no memory, no random numbers."""
    try:
        # Checkpoints from before there was a choice have no vote: the mean.
        vote = Vote(**description.get("vote", {}))
        with torch.device("meta"):
            members = [
                build_model(ModelConfig(**member["config"]), shape=member["shape"], classes=member["classes"])
                for member in description["members"]
            ]
        return Ensemble(members, vote)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"expected the description of an ensemble in {path}, got {error!r}") from None


def _check_weights(path: Path, expected: Mapping[str, Tensor], actual: Mapping[str, Tensor]) -> None:
    if different := sorted(expected.keys() ^ actual.keys()):
        kind = "missing" if different[0] in expected else "unknown"
        raise CheckpointError(
            f"expected {len(expected)} tensors in {path}, got {len(actual)}: {different[0]} is {kind}"
        )
    for name, tensor in actual.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"expected shape {tuple(expected[name].shape)} for {name} in {path}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError(f"expected {expected[name].dtype} for {name} in {path}, got {tensor.dtype}")
        if not tensor.isfinite().all():
            raise CheckpointError(f"expected finite weights in {path}, got NaN or infinity in {name}")
