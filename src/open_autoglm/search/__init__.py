# SPDX-License-Identifier: Apache-2.0
"""Architecture and hyper-parameter search: space, plan, trials, baselines, leaderboard."""
