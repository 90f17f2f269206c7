"""Stores on their way: ``push`` publishes one, ``pull`` fetches one or a part; each object is checked on its way."""

from __future__ import annotations

from ensadv_data.remote.copies import Moved
from ensadv_data.remote.pulling import Wanted, pull
from ensadv_data.remote.pushing import push

__all__ = ["Moved", "Wanted", "pull", "push"]
