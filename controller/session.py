"""The process's MQTT session, from settings. Apart from the site's ports, so that a node agent loads none of those."""

from __future__ import annotations

import numpy as np

from controller.ports import Clock
from controller.settings import Settings
from drivers.mqtt import MqttSession


def open_session(settings: Settings, *, clock: Clock, client_id: str) -> MqttSession | None:
    """The process's MQTT session, not yet running; None where no broker is configured."""
    if settings.mqtt is None:
        return None
    return MqttSession(settings.mqtt, client_id=client_id, clock=clock, rng=np.random.default_rng())
