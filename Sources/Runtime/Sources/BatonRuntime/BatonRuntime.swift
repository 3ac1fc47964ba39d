// What a module, the command line and the tools import: every floor of the runtime under one name.
@_exported import BatonBase
@_exported import BatonCPR
@_exported import BatonDeviceKit
@_exported import BatonMachine
@_exported import BatonModules
@_exported import BatonQMP
