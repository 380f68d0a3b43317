# SPDX-License-Identifier: Apache-2.0
"""The five steps of a build, each a pipeline stage: packet in, packet out, all else in files of the run folder.

Every step can be cut off at any moment and called again: it finds in its own folder what is done.
"""
