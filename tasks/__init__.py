# SPDX-License-Identifier: Apache-2.0
"""Seqio tasks and mixtures of the paper, with what scores them.

Importing a module of tasks (`glue`, `super_glue`, `question_answering`,
`summarization`, `pretraining`) registers them with seqio; `labels`, `scores`,
`metrics` and `postprocessors` need neither seqio nor TensorFlow.
"""
