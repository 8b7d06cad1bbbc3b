"""The checkpoints of a stage: written and read as all our files are, and valid wherever their folder has gone."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import CheckpointIO

from examples.mmwhs import files


class WholeFiles(CheckpointIO):
    """Writes beside the file and renames.

    Lightning's own writes to the system's folder for temporary files; where that is another disk than that of the
    run, the move from there is a copy, which a kill can cut in half.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint."""
        files.save(Path(path), checkpoint)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads a checkpoint, on the CPU; whatever is asked for, of tensors and plain values only."""
        return files.load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint."""
        Path(path).unlink(missing_ok=True)


class Keep(ModelCheckpoint):
    """A checkpoint of one name, `ModelCheckpoint` where it was or elsewhere.

    Lightning's forgets the best score where the folder was moved between two calls, and then takes the next score
    for the best.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state that an earlier call saved, with its paths as they are now."""
        before, now = state_dict["dirpath"], str(self.dirpath)

        def moved(value: Any) -> Any:
            if isinstance(value, dict):
                return {moved(key): moved(each) for key, each in value.items()}
            return now + value.removeprefix(before) if isinstance(value, str) and value.startswith(before) else value

        super().load_state_dict(moved(state_dict))
