"""Templates of the function XML, the server configuration, the launchers and the settings."""
