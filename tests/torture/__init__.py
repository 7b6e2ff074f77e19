"""Tests that take minutes: crashes, kills, full disks, power cuts."""

import pytest

pytest.register_assert_rewrite("tests.torture.expected")
