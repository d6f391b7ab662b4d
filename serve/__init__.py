"""Canary serving: what decides how much traffic a new version gets.

What decides is pure: no network, no clock, no framework.

- ``config``: canary, A/B test and shadow configurations, and their mistakes in plain words;
- ``delta``: what a variant did since the last report;
- ``wealth``, ``bets``: tests that may be looked at any time;
- ``judge``: all tests of a rollout together, with one level of false rollback;
- ``records``, ``rollout``: the state machine and what it hands out;
- ``split``: which variant answers a request.
"""
