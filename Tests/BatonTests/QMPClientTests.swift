import Foundation
import TestSupport
import Testing

/// The monitors of the real executable, from outside.
@Suite("Monitors of the executable")
struct QMPClientTests {
    /// PyPI's `qemu.qmp`, installed once under `.build`; nil without Python, pip or network.
    static let pythonPath: String? = {
        guard Products.find("python3") != nil, let cache = try? Products.cache("python") else { return nil }
        let target = "\(cache)/qemu.qmp"
        let marker = "\(target)/qemu/qmp/__init__.py"
        if FileManager.default.fileExists(atPath: marker) { return target }
        let staged = "\(target).\(getpid())"
        defer { try? FileManager.default.removeItem(atPath: staged) }
        guard
            (try? ChildProcess.run(
                [
                    "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input",
                    "--target", staged, "qemu.qmp",
                ], by: .seconds(90))) != nil
        else { return nil }
        // Complete or not there at all, also when the time is over in the middle.
        try? FileManager.default.removeItem(atPath: target)
        return rename(staged, target) == 0 ? target : nil
    }()

    private static let script = """
        import asyncio, sys
        from qemu.qmp import QMPClient
        from qemu.qmp.qmp_client import ExecuteError

        async def main():
            client = QMPClient("test")
            await client.connect(sys.argv[1])
            assert (await client.execute("query-status"))["status"] == "prelaunch"
            assert (await client.execute("query-version"))["package"]
            with client.listener(("STOP", "RESUME")) as events:
                await client.execute("cont")
                assert (await events.get())["event"] == "RESUME"
                await client.execute("stop")
                assert (await events.get())["event"] == "STOP"
            try:
                await client.execute("no-such-command")
                assert False
            except ExecuteError as error:
                assert error.error_class == "CommandNotFound", error
            try:
                await client.execute("cpr-save", {"filename": 1, "mode": "restart"})
                assert False
            except ExecuteError as error:
                assert str(error) == "Invalid parameter type for 'filename', expected: string", error
            answers = await asyncio.gather(*(client.execute("query-uuid") for _ in range(100)))
            assert len(answers) == 100
            assert any(e["name"] == "cpr-exec" for e in await client.execute("query-qmp-schema"))
            await client.execute("quit")
            try:
                await client.disconnect()
            except EOFError:
                pass  # The server, having quit, may have closed first.
            print("satisfied")

        asyncio.run(main())
        """

    @Test("PyPI's qemu.qmp client works unchanged", .enabled(if: pythonPath != nil, "needs python3, pip and PyPI"))
    func pythonClient() throws {
        let directory = try TemporaryDirectory()
        let path = directory.file("qmp")
        let baton = try ChildProcess(
            [Products.baton, "-S", "-nographic", "-nodefaults", "-qmp", "unix:\(path),server=on"])
        // The server waits for the client before it goes on.
        try baton.waitForErrors("waiting for connection on: disconnected:unix:\(path),server=on")
        let script = try directory.write("client.py", Self.script)
        let output = try ChildProcess.run(
            ["python3", script, path], environment: ["PYTHONPATH": Self.pythonPath ?? ""], by: .seconds(120))
        #expect(output == "satisfied\n")
        #expect(try baton.waitForExit() == .status(0))
        #expect(!FileManager.default.fileExists(atPath: path))
    }

    @Test("Several monitors see the same machine")
    func severalMonitors() throws {
        let directory = try TemporaryDirectory()
        let baton = try ChildProcess([
            Products.baton, "-S", "-nographic", "-nodefaults", "-name", "several",
            "-qmp", "unix:\(directory.file("a")),server=on,wait=off",
            "-chardev", "socket,id=b,path=\(directory.file("b")),server=on,wait=off",
            "-mon", "chardev=b,mode=control",
        ])
        let first = try QMPClient(path: directory.file("a"), of: baton)
        let second = try QMPClient(path: directory.file("b"), of: baton)
        try first.execute("cont")
        try second.waitForEvent("RESUME")
        #expect(try second.status() == "running")
        let name = try second.execute("query-name") as? [String: String]
        #expect(name == ["name": "several"])
        try second.execute("quit")
        #expect(try first.waitForEvent("SHUTDOWN")["reason"] as? String == "host-qmp-quit")
        #expect(try baton.waitForExit() == .status(0))
    }

    @Test(
        "Bad monitor and chardev options end with QEMU's messages",
        arguments: [
            (["-mon", "chardev=no"], "chardev \"no\" not found"),
            (["-mon", "chardev=c,mode=x"], "Parameter 'mode' does not accept value 'x'"),
            (
                ["-chardev", "socket,id=s,path=/nowhere/s"],
                "Failed to connect to '/nowhere/s': No such file or directory"
            ),
            (["-chardev", "null,id=c"], "Duplicate ID 'c' for chardev"),
            (["-chardev", "null"], "chardev: no id specified"),
        ])
    func badOptions(arguments: [String], message: String) throws {
        let baton = try ChildProcess(
            [Products.baton, "-S", "-nographic", "-nodefaults", "-chardev", "null,id=c"] + arguments)
        #expect(try baton.waitForExit() == .status(1))
        #expect(baton.errors.contains(message), "\(baton.errors)")
    }
}
