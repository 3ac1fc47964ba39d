import BatonRuntime
import RISCV

/// The checkpoint sections of a board's devices, with fields changed: a state is refused and nothing has changed, or it
/// is one that the device can save and load again, and go on with.
extension Target {
    static let virtState = states("state-virt") { try FuzzBoard.virt(aia: .aplicIMSIC) }
    static let microVMState = states("state-microvm") { try FuzzBoard.microVM() }

    private static func states(_ name: String, _ board: @escaping () throws -> FuzzBoard) -> Target {
        Target(
            name: name,
            // Each device, unchanged and with each of its first fields changed.
            seeds: { (0..<40).map { [$0, 1, 0, 0, 0, 0, 0, 0, 0] } },
            make: {
                let board = try board()
                return { bytes in
                    var input = Input(bytes)
                    let device = board.vm.devices[Int(input.byte()) % board.vm.devices.count]
                    let before = savedState(device)
                    var state = EditableState(before)
                    for _ in 0..<input.byte() % 6 { state.edit(&input) }
                    let payload = state.bytes
                    do throws(VMMError) { try loadState(payload, into: device) } catch {
                        expect(
                            savedState(device) == before, "'\(device.stateName)' has changed by a state that it refuses"
                        )
                        return
                    }
                    let taken = savedState(device)
                    do throws(VMMError) { try loadState(taken, into: device) } catch {
                        found("'\(device.stateName)' refuses what it saves after a load: \(error.message)")
                    }
                    expect(savedState(device) == taken, "'\(device.stateName)' saves another state after it was loaded")
                    // The guest goes on with it, and uses the device.
                    board.resume()
                    board.turn(2)
                    board.carryOut(input.rest(), limit: 60)
                    board.turn(2)
                    board.expectReset(wiresAreReal: false)
                }
            })
    }
}
