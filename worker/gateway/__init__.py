"""The gateway: the contract over HTTP, for services in any language; see docs/gateway.md."""
