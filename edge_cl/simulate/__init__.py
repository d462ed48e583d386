"""A whole device on a desktop: synthetic people and sensors, scenarios, the report."""
