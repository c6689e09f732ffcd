# SPDX-License-Identifier: Apache-2.0
"""What a prompt says: a report in words, numbers and pictures.

    python -m prompt_tuning.interpret --help

Lester et al. (2021), sec. 7: the words of the vocabulary nearest to each
position, and what follows from them.
"""
