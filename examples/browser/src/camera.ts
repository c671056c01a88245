/** The camera: frames one by one, as fast as they are processed. */

const REASONS: Record<string, string> = {
  NotAllowedError:
    "The browser does not let this page use the camera: allow it in the page's settings, then try again.",
  NotFoundError: "There is no camera on this machine. Choose a photo instead.",
  NotReadableError: "The camera is used by another program, or does not answer.",
};

export class Camera {
  private stream?: MediaStream;

  /**
   * @param video shows the camera.
   * @param take receives a frame; the next one waits until it is done.
   * @param ended is called if the camera stops (unplugged, or its permission revoked).
   */
  constructor(
    private readonly video: HTMLVideoElement,
    private readonly take: (picture: ImageBitmap) => Promise<void>,
    private readonly ended: (reason: string) => void,
  ) {}

  get isOn(): boolean {
    return this.stream !== undefined;
  }

  /** @throws Error with the reason if the camera cannot be used. */
  async start(): Promise<void> {
    if (!navigator.mediaDevices?.getUserMedia) {
      throw new Error("Browsers allow the camera only on https pages and on localhost.");
    }
    let stream: MediaStream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
    } catch (error) {
      const { name, message } = error as DOMException;
      throw new Error(REASONS[name] ?? `The camera cannot be started: ${message || name}`);
    }
    this.stop();
    this.stream = stream;
    for (const track of stream.getTracks()) {
      track.onended = () => {
        if (this.stream !== stream) return;
        this.stop();
        this.ended("The camera has been switched off.");
      };
    }
    this.video.srcObject = stream;
    await this.video.play();
    void this.run(stream);
  }

  stop(): void {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = undefined;
    this.video.srcObject = null;
  }

  private async run(stream: MediaStream): Promise<void> {
    try {
      while (this.stream === stream) {
        await new Promise(requestAnimationFrame); // browsers hold it back while nobody sees the page
        if (this.stream !== stream || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) continue;
        await this.take(await createImageBitmap(this.video));
      }
    } catch (error) {
      if (this.stream !== stream) return;
      this.stop();
      this.ended(error instanceof Error ? error.message : String(error));
    }
  }
}
