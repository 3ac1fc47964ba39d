import BatonRuntime
import RISCV

/// Every register of a board: reads and writes of all widths anywhere, over memory that is full of anything. Afterwards
/// each device's state goes through a checkpoint, and a reset makes it as a new one.
extension Target {
    static let virtRegisters = registers("registers-virt") { try FuzzBoard.virt(aia: .none) }
    static let microVMRegisters = registers("registers-microvm") { try FuzzBoard.microVM() }

    private static func registers(_ name: String, _ board: @escaping () throws -> FuzzBoard) -> Target {
        Target(
            name: name, longestInput: 2048, startsLong: true,
            seeds: {
                // One access to each region, and a line of each kind.
                [(0..<24).flatMap { [0x30, $0, 0, 0, 0, 1] as [UInt8] }]
                    + (0..<8).map { kind in (0..<12).flatMap { [0x30 | kind, $0, 0x10, 0, 1, 0, 2] as [UInt8] } }
            },
            make: {
                let board = try board()
                return { input in
                    board.resume()
                    board.placeBars()
                    board.carryOut(input)
                    board.turn()
                    board.pause()
                    for device in board.vm.devices {
                        let state = savedState(device)
                        do throws(VMMError) { try loadState(state, into: device) } catch {
                            found("'\(device.stateName)' refuses its own state: \(error.message)")
                        }
                        expect(
                            savedState(device) == state, "'\(device.stateName)' is another after its state was loaded")
                    }
                    board.expectReset()
                }
            })
    }
}
