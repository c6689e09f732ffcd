# SPDX-License-Identifier: Apache-2.0
"""XSum and CNN/DailyMail."""

import functools

from prompt_tuning.tasks import preprocessors, registration, scores
import seqio

# Task -> its stem, TFDS name, features of the article and of the summary.
_TASKS = {
  "xsum_v110_examples": ("xsum", "xsum:1.1.0", "document", "summary"),
  "cnn_dailymail_v310_examples": (
    "cnn_dailymail",
    "cnn_dailymail:3.1.0",
    "article",
    "highlights",
  ),
}

for _name, (_stem, _tfds_name, _article, _summary) in _TASKS.items():
  registration.add(
    _name,
    seqio.TfdsDataSource(_tfds_name),
    [
      functools.partial(
        preprocessors.summarization, article=_article, summary=_summary
      )
    ],
    scoring=scores.SCORINGS[_stem],
  )
