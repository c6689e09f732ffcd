# SPDX-License-Identifier: Apache-2.0
r"""Writes the rows of local files as data sets of `tensorflow_datasets`.

    python -m prompt_tuning.tasks.prepare \
      --rows=DIR --data_dir=DIR [--only=rte,sst2]

`--rows` holds `<name>/<split>.jsonl(.gz)`, one row a line with the features and
label numbers of TFDS, or the unpacked archives of GLUE or SuperGLUE. Tasks read
the result without a network once seqio knows the folder
(`seqio.set_tfds_data_dir_override`). A data set is checked as a whole before it
appears; one that is already there is left as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import io
import os
import pathlib
import sys
import tempfile
from typing import Any

from absl import app, flags, logging
from prompt_tuning.tasks import archives, checks, data_sets, rows
import tensorflow_datasets as tfds

_ROWS = flags.DEFINE_string("rows", None, "Folder of the rows.", required=True)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Folder to write TFDS data sets into.", required=True
)
_ONLY = flags.DEFINE_list(
  "only", [], "Names of data sets to write; all found without."
)


def prepare(
  rows_dir: pathlib.Path, data_dir: pathlib.Path, *, only: Sequence[str] = ()
) -> Iterator[str]:
  """Writes data sets, and yields a line about each.

  Args:
    rows_dir: folder of the rows.
    data_dir: TFDS folder, made if need be.
    only: names out of `data_sets.DATA_SETS`; empty for all that have rows.

  Raises:
    ValueError: for an unknown name, a data set without rows, or broken rows.
  """
  known = data_sets.DATA_SETS
  unknown = sorted(set(only) - set(known))
  if unknown:
    raise ValueError(
      f"--only={','.join(unknown)} is unknown: known are {', '.join(known)}"
    )
  found = {
    name: layout_and_files
    for name in only or known
    if (layout_and_files := _find_files(rows_dir, known[name]))
  }
  missing = [name for name in only if name not in found]
  if missing or not found:
    raise ValueError(
      f"{rows_dir} has no rows of {', '.join(missing) or 'any data set'}: "
      "wanted is <name>/<split>.jsonl, or an unpacked GLUE or SuperGLUE archive"
    )
  for name, (layout, files) in found.items():
    for tfds_name in known[name].tfds_names:
      yield _prepare_one(tfds_name, layout, files, data_dir)


Files = Mapping[str, Sequence[pathlib.Path]]


def _find_files(
  rows_dir: pathlib.Path, data_set: data_sets.DataSet
) -> tuple[archives.Layout, Files] | None:
  """Returns the first layout with files, and those of each split."""
  for layout in data_set.layouts:
    folder = rows_dir / layout.folder
    found = {
      split: [path for name in names if (path := rows.find(folder, name))]
      for split, names in layout.files.items()
    }
    files = {split: paths for split, paths in found.items() if paths}
    if files:
      return layout, files
  return None


def _prepare_one(
  tfds_name: str,
  layout: archives.Layout,
  files: Files,
  data_dir: pathlib.Path,
) -> str:
  official = tfds.builder(tfds_name, data_dir=data_dir)
  if official.is_prepared():
    return f"{tfds_name}: already there, {_counts(official)}"
  data_dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".prepare-", dir=data_dir) as folder:
    config = official.builder_config
    builder = tfds.dataset_builders.AdhocBuilder(
      name=official.name,
      config=config.name if config else None,
      version=official.version,
      features=official.info.features,
      data_dir=folder,
      split_datasets={
        split: _keyed_rows(layout, split, paths, official.info.features)
        for split, paths in files.items()
      },
    )
    # TFDS prints of downloads that do not happen, into a folder that goes.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
      )
    final = pathlib.Path(official.data_path)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.rename(builder.data_path, final)
  return f"{tfds_name}: wrote {_counts(builder)}"


def _counts(builder: tfds.core.DatasetBuilder) -> str:
  """Returns the rows of each split, beside the published number if fewer."""
  config = builder.builder_config
  name = f"{builder.name}/{config.name}" if config else builder.name
  published = data_sets.PUBLISHED_ROWS.get(name, {})
  counts = []
  for split, info in builder.info.splits.items():
    wanted = published.get(split, info.num_examples)
    of = "" if info.num_examples == wanted else f" of {wanted} published"
    counts.append(f"{split} {info.num_examples}{of}")
  return f"{', '.join(counts)} rows"


def _keyed_rows(
  layout: archives.Layout,
  split: str,
  paths: Sequence[pathlib.Path],
  features: tfds.features.FeaturesDict,
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (row number, checked row); TFDS shuffles by a hash of the number."""
  number = -1
  located_rows = (row for path in paths for row in layout.read_fn(path, split))
  for number, located in enumerate(located_rows):
    row = dict(located.row)
    row.setdefault("idx", number)
    yield number, checks.checked(rows.Located(located.where, row), features)
  if number < 0:
    names = ", ".join(map(str, paths))
    raise ValueError(f"{names}: split {split!r} has no rows")


def main(argv: Sequence[str]) -> None:
  """Prepares what the flags name; 2 is the exit code of a user's mistake."""
  del argv
  tfds.disable_progress_bar()
  logging.set_verbosity(logging.ERROR)
  try:
    for line in prepare(
      pathlib.Path(_ROWS.value), pathlib.Path(_DATA_DIR.value), only=_ONLY.value
    ):
      print(line, flush=True)
  except ValueError as error:
    print(f"prepare: {error}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  app.run(main)
