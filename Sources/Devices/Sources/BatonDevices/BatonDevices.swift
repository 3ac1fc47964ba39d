// The parts of machines under one name.
@_exported import GuestHealth
@_exported import InstructionSets
@_exported import PCI
@_exported import Serial
@_exported import Virtio
