"""The other end of MQTT: collects what devices send, stores it once, gives them orders, merges what they
learned.
"""
