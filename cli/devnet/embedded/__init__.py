"""The chain of a devnet where no anvil is installed: py-evm behind the JSON-RPC methods that the project uses."""
