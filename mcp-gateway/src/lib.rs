//! Offers the fleet to MCP clients as tools.
