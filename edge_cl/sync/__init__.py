"""MQTT: messages and topics, the outbox on disk, the pump; and the local control socket."""
